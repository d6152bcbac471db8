"""A decoder's weights -> ONNX graphs that complete code, a segment each, over one file of weights.

`shape.py` says what is common to decoders, `families.py` reads each family's weights as that, `graph.py` builds the
nodes of some of its layers, `weights.py` keeps each matrix once, and `write.py` makes a variant of all this.
"""

"""What each layer of a model holds, and so how many of the lowest to freeze (Telly, 2304.05216).

source.py      code to look at: a file's, or that of installed packages
tokens.py      code -> tokens with their place in the syntax tree; tokens -> the model's subwords
properties.py  which questions are put to a layer, and to which tokens
stack.py       a model of any family as a stack of layers, and their outputs
probes.py      linear probes, and control tasks
similarity.py  RSA and CKA between a model and its fine-tuned form
recommend.py   the rule that makes a number of layers of all that
analysis.py    the whole
"""

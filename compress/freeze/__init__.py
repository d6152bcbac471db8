"""Telly: freezing a model's lower layers (Towards Efficient Fine-tuning of Pre-trained Code Models, 2304.05216)."""

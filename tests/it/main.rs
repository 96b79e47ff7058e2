//! The product's tests: every fixture through every way in, compared with what PyTorch, timm and NumPy computed.

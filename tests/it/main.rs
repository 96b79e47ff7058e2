//! The product's tests: every fixture through every way in, compared with what PyTorch, timm and NumPy computed.

mod folding;
mod reading;
mod support;

#[cfg(feature = "cli")]
mod commands;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod memory;
#[cfg(feature = "cli")]
mod writing;

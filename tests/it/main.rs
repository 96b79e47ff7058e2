//! The product's tests: every fixture through every way in, compared with what PyTorch, timm and NumPy computed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, their helpers included"
)]

mod comparing;
mod containers;
mod distributed;
mod families;
mod folding;
mod formats;
mod fuzzed;
mod objects;
mod reading;
mod remodel;
mod scanning;
mod support;
mod torch_files;

#[cfg(feature = "cli")]
mod bad_flags;
#[cfg(feature = "cli")]
mod bad_input;
#[cfg(feature = "cli")]
mod bench;
#[cfg(feature = "cli")]
mod commands;
#[cfg(all(feature = "cli", feature = "verify"))]
mod converting;
#[cfg(all(feature = "cli", feature = "fold-cuda", feature = "verify", target_os = "linux", target_env = "gnu"))]
mod cuda;
#[cfg(all(feature = "cli", target_os = "linux", target_env = "gnu"))]
mod faults;
#[cfg(all(feature = "cli", feature = "verify"))]
mod gradients;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod hostile;
#[cfg(all(feature = "cli", unix))]
mod killed;
#[cfg(all(feature = "cli", feature = "verify", unix))]
mod learn_command;
#[cfg(all(feature = "cli", feature = "verify"))]
mod learning;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod memory;
#[cfg(feature = "verify")]
mod model;
#[cfg(feature = "cli")]
mod parts;
#[cfg(feature = "verify")]
mod preprocessing;
#[cfg(feature = "cli")]
mod replacing;
#[cfg(feature = "verify")]
mod samples;
#[cfg(feature = "verify")]
mod second_opinion;
#[cfg(feature = "cli")]
mod sharding;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod shrunk;
#[cfg(all(feature = "cli", feature = "verify"))]
mod threads;
#[cfg(feature = "verify")]
mod variants;
#[cfg(all(feature = "cli", feature = "verify"))]
mod verifying;
#[cfg(feature = "cli")]
mod writing;

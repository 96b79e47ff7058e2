//! Where the terms of a plan are computed, and what is said of it.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "fold-cuda")]
use super::cuda::{self, Cuda};
#[cfg(not(feature = "fold-cuda"))]
use super::units::UNIT;
use crate::plan::Plan;

/// Where something is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// On the processor.
    #[default]
    Cpu,
    /// On the NVIDIA GPU with that number, from 0.
    Cuda(usize),
    /// On the first NVIDIA GPU, if there is one.
    Auto,
}

impl Device {
    /// `cpu`, `cuda` (the first), `cuda:N`, `auto`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Device> {
        match text {
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            "auto" => Some(Device::Auto),
            _ => {
                let number = text.strip_prefix("cuda:")?;
                let digits = number.bytes().all(|byte| byte.is_ascii_digit());
                digits.then(|| number.parse().ok().map(Device::Cuda)).flatten()
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
            Device::Auto => f.write_str("auto"),
        }
    }
}

/// What computes the terms of a plan's steps: always the processor in the end, if nothing else does. Which of them it was changes
/// no byte of the output.
#[derive(Debug, Default)]
pub(crate) struct Computer {
    #[cfg(feature = "fold-cuda")]
    pub(super) cuda: Option<Cuda>,
    /// Whether the GPU, and the processor, computed anything.
    on_gpu: AtomicBool,
    on_cpu: AtomicBool,
    notes: Mutex<Vec<String>>,
}

impl Computer {
    /// The device that is wanted for a plan; the processor, with a note, if it cannot be had.
    pub(crate) fn open(wanted: Device, plan: &Plan) -> Computer {
        // A driver takes a moment to start: not where there is nothing to compute.
        if wanted == Device::Cpu || plan.steps.iter().all(|step| step.terms.is_empty()) {
            return Computer::default();
        }
        Computer::on(wanted)
    }

    #[cfg(feature = "fold-cuda")]
    fn on(wanted: Device) -> Computer {
        let number = if let Device::Cuda(number) = wanted { number } else { 0 };
        let computer = Computer::default();
        match Cuda::open(number) {
            Ok(cuda) => return Computer { cuda: Some(cuda), ..computer },
            // Who leaves the choice to the program has it made, not explained.
            Err(error) if wanted == Device::Auto && error.is_absent() => {}
            Err(error) => {
                computer.note(format!("--device {wanted}: {error}; the processor computes, with the same result"))
            }
        }
        computer
    }

    #[cfg(not(feature = "fold-cuda"))]
    fn on(wanted: Device) -> Computer {
        let computer = Computer::default();
        if wanted != Device::Auto {
            computer.note(format!(
                "--device {wanted}: this program was built without the feature fold-cuda; the processor computes, with the same result"
            ));
        }
        computer
    }

    /// Says something, once.
    pub(super) fn note(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// Notes that so many elements were computed by the GPU, or by the processor.
    pub(super) fn computed(&self, on_gpu: bool, elements: usize) {
        let flag = if on_gpu { &self.on_gpu } else { &self.on_cpu };
        if elements > 0 {
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// What computed, in words: `cpu`, `cuda:0`, or `cuda:0 and cpu`.
    pub(crate) fn device(&self) -> String {
        let number = self.number().filter(|_| self.on_gpu.load(Ordering::Relaxed));
        match number.map(Device::Cuda) {
            Some(gpu) if self.on_cpu.load(Ordering::Relaxed) => format!("{gpu} and cpu"),
            Some(gpu) => gpu.to_string(),
            None => Device::Cpu.to_string(),
        }
    }

    /// What the user should know of it.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether all is computed by the processor.
    pub(super) fn is_cpu(&self) -> bool {
        self.number().is_none()
    }

    #[cfg(feature = "fold-cuda")]
    fn number(&self) -> Option<usize> {
        self.cuda.as_ref().map(Cuda::number)
    }

    #[cfg(not(feature = "fold-cuda"))]
    fn number(&self) -> Option<usize> {
        None
    }

    /// Bytes of a unit of a step that has terms.
    #[cfg(feature = "fold-cuda")]
    pub(super) fn unit(&self) -> usize {
        if self.cuda.is_some() { cuda::UNIT } else { super::units::UNIT }
    }

    /// Bytes of a unit of a step that has terms.
    #[cfg(not(feature = "fold-cuda"))]
    pub(super) fn unit(&self) -> usize {
        UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_by_the_words_of_pytorch() {
        let known =
            [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:7", Device::Cuda(7)), ("auto", Device::Auto)];
        for (text, device) in known {
            assert_eq!(Device::parse(text), Some(device));
        }
        for text in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:99999999999999999999", "mps"] {
            assert_eq!(Device::parse(text), None, "{text}");
        }
        assert_eq!(Device::Cuda(3).to_string(), "cuda:3");
    }
}

//! From a plan to published files.

use crate::checkpoint::StateDict;
use crate::engine::{self, Computer, Progress, RunOptions, RunReport};
use crate::error::Result;
use crate::plan::Plan;
use crate::write::Writer;

/// Runs `plan` over the tensors `inputs` into files that are begun, does what `before` does when all of it is computed, and publishes them.
///
/// # Errors
/// As the engine and the writers. Nothing is published if an input is no longer what it was when it was opened.
pub(crate) fn stream(
    mut writer: Writer,
    plan: &Plan,
    inputs: &[StateDict<'_>],
    options: &RunOptions,
    computer: &Computer,
    progress: &mut dyn Progress,
    before: impl FnOnce(&RunReport) -> Result<()>,
) -> Result<RunReport> {
    let run = engine::run(plan, inputs, &mut writer, options, computer, progress);
    // What was read is what the files held, or is not published; and a change explains whatever else went wrong.
    inputs.iter().try_for_each(StateDict::check_unchanged)?;
    let run = run?;
    before(&run)?;
    writer.publish()?;
    Ok(run)
}

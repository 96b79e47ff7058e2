//! Where a run is, kept in a file after every epoch.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use m2pt_surgery::learn::{Epoch, State, TextFile};
use m2pt_surgery::verify::Pathway;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Args, Run};

/// The file, and what has to be the same to go on from it.
pub(super) struct Saved {
    path: PathBuf,
    resume: bool,
    key: Value,
    /// How many numbers are learned.
    numbers: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    m2pt_surgery_learning: u32,
    key: Value,
    history: Vec<Epoch>,
    state: State,
}

impl Saved {
    /// The file at `path`, which may only be there already to go on from it, or to be replaced.
    pub(super) fn new(path: &Path, pathway: &Pathway<'_>, run: &Run<'_>, args: &Args) -> Result<Saved> {
        if path.exists() && !args.resume && !args.force {
            bail!("{} exists already; --resume goes on from it, --force begins anew", path.display());
        }
        // That it can be written is known before anything is computed.
        drop(TextFile::create(path, true).context("--state")?);
        let hash = |side: &m2pt_surgery::Understood<'_>| side.tensors.checkpoint().sha256();
        let key = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "target": hash(&pathway.target),
            "aux": pathway.aux.iter().map(hash).collect::<Vec<_>>(),
            "root": pathway.target.tensors.root(),
            "samples": [run.fit.sha256(), run.stop.sha256()],
            "options": run.options,
            "layers": super::lambda_sets(run.learner, &vec![0.0; run.learner.lambdas()]),
            "share": format!("{:?}", args.learning.share),
            "train": [args.learning.train_head, args.learning.train_norms],
            "device": args.learning.device,
            "bias": format!("{:?}", args.learning.bias),
            "model": format!("{:?}", run.learner.config()),
            "threads": rayon::current_num_threads(),
        });
        Ok(Saved { path: path.to_owned(), resume: args.resume, key, numbers: run.learner.numbers() as u64 })
    }

    /// Whether it is wanted to go on.
    pub(super) fn resumes(&self) -> bool {
        self.resume
    }

    /// What is there to go on from, if that is wanted.
    pub(super) fn read(&self) -> Result<Option<(Vec<Epoch>, State)>> {
        /// Bytes of the longest, but for what is learned: thousands of epochs of a large model.
        const LONGEST: u64 = 256 << 20;
        /// Bytes, at most, of each number that is learned: its value, its best one, two moments.
        const NUMBER: u64 = 256;
        if !self.resume || !self.path.exists() {
            return Ok(None);
        }
        let file = self.path.display();
        if std::fs::metadata(&self.path).with_context(|| format!("cannot read {file}"))?.len()
            > LONGEST + NUMBER * self.numbers
        {
            bail!("{file} is no state of a run: it is too long; leave out --resume");
        }
        let text = std::fs::read(&self.path).with_context(|| format!("cannot read {file}"))?;
        let content: Content = serde_json::from_slice(&text)
            .with_context(|| format!("{file} is no state of a run; leave out --resume"))?;
        if content.m2pt_surgery_learning != 2 {
            bail!("{file} is of another version; leave out --resume");
        }
        let differs = |(name, value): (&String, &Value)| (content.key.get(name) != Some(value)).then(|| name.clone());
        let other: Vec<String> = self.key.as_object().into_iter().flatten().filter_map(differs).collect();
        if !other.is_empty() {
            bail!("{file} is of another run, with other {}; leave out --resume", other.join(", "));
        }
        if content.history.len() != content.state.epoch() + 1 {
            bail!("{file} is damaged: its history is not that of its state; leave out --resume");
        }
        Ok(Some((content.history, content.state)))
    }

    /// Replaces the file.
    pub(super) fn write(&self, history: &[Epoch], state: &State) -> Result<()> {
        let (key, history, state) = (self.key.clone(), history.to_vec(), state.clone());
        let content = Content { m2pt_surgery_learning: 2, key, history, state };
        let mut file = TextFile::create(&self.path, true)?;
        file.write(&format!("{}\n", serde_json::to_string(&content)?))?;
        Ok(file.publish()?)
    }
}

//! A file that is one of several, by its name, and was opened without the others.

use std::fmt;
use std::path::Path;

/// Which of several files a file is, as the Hugging Face libraries name them: `model-00001-of-00002.safetensors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The number of the file, from 1.
    pub number: usize,
    /// How many files there are.
    pub of: usize,
}

impl Shard {
    /// What the name of the file at `path` says; `None` if it says nothing, or that it is the only one.
    pub(super) fn of_path(path: &Path) -> Option<Shard> {
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let (rest, of) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
        let (_, own) = rest.rsplit_once('-')?;
        let (number, of) = (number(own)?, number(of)?);
        (1..=of).contains(&number).then_some(Shard { number, of }).filter(|shard| shard.of > 1)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shard { number, of } = self;
        write!(
            f,
            "by its name it is file {number} of {of}, and holds only that part of the checkpoint; for all of it, give the \
             folder or its index (*.index.json)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards_tell_their_numbers() {
        let of = |name: &str| Shard::of_path(&Path::new("folder").join(name)).map(|shard| (shard.number, shard.of));
        assert_eq!(of("model-00001-of-00002.safetensors"), Some((1, 2)));
        assert_eq!(of("pytorch_model-00046-of-00046.bin"), Some((46, 46)));
        assert_eq!(of("a-1-of-3-00002-of-00010.pth"), Some((2, 10)));
        for name in [
            "model.safetensors",
            "model-00001-of-00001.safetensors",
            "model-00000-of-00002.safetensors",
            "model-00003-of-00002.safetensors",
            "model-+1-of-2.bin",
            "best-of-10.pth",
            "1-of-2.pth",
            "model-00001-of-.bin",
            "model-1-of-99999999999999999999.bin",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}

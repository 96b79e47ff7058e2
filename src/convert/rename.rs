//! Names and types of the output.

use super::items::{Item, Items};
use super::{ConvertInputs, ConvertProblem, Decided};
use crate::container::MAX_NAME_BYTES;
use crate::error::Result;

impl ConvertInputs {
    /// Renames as asked for, in order, and checks that names stay different.
    pub(super) fn rename(&self, items: &mut Items<'_>) -> Result<()> {
        for (pattern, replacement) in &self.request.renames.rename {
            let mut found = false;
            for item in &mut items.all {
                found |= pattern.is_match(&item.name);
                item.name = pattern.replace_all(&item.name, replacement.as_str()).into_owned();
                // At once: each of many can double it.
                self.require_short(item)?;
            }
            if !found {
                let (option, pattern) = ("--rename", pattern.as_str().to_owned());
                return Err(self.wrong(ConvertProblem::NothingMatches { option, pattern }));
            }
        }
        if let Some(prefix) = &self.request.renames.add_prefix {
            items.all.iter_mut().for_each(|item| item.name.insert_str(0, prefix));
            items.all.iter().try_for_each(|item| self.require_short(item))?;
        }
        match items.collision() {
            None => Ok(()),
            Some((first, second)) => {
                let (name, first, second) = (second.name.clone(), first.from.join(" + "), second.from.join(" + "));
                Err(self.wrong(ConvertProblem::Collision { name, first, second }))
            }
        }
    }

    /// Refuses a name that no reader would take.
    fn require_short(&self, item: &Item) -> Result<()> {
        if item.name.len() <= MAX_NAME_BYTES {
            return Ok(());
        }
        let (from, bytes) = (item.from.join(" + "), item.name.len());
        Err(self.wrong(ConvertProblem::LongName { from, bytes }))
    }

    /// Gives each floating-point tensor the type that was asked for.
    pub(super) fn cast(&self, items: &mut Items<'_>, decided: &mut Decided) -> Result<()> {
        let dict = items.dict()?;
        let stored = items.dtypes(&dict);
        let mut skipped = Vec::new();
        for (pattern, dtype) in &self.request.dtypes {
            let mut found = false;
            for (item, stored) in items.all.iter_mut().zip(&stored) {
                if pattern.as_ref().is_some_and(|pattern| !pattern.is_match(&item.name)) {
                    continue;
                }
                if stored.is_foldable() {
                    item.dtype = Some(*dtype);
                    found = true;
                } else if stored.is_float() {
                    skipped.push(item.name.clone());
                }
            }
            if !found {
                let pattern = pattern.as_ref().map_or("", |pattern| pattern.as_str()).to_owned();
                return Err(self.wrong(ConvertProblem::NothingCast { pattern }));
            }
        }
        if !skipped.is_empty() {
            let names = skipped.join(", ");
            decided.notes.push(format!("{names} are 8-bit floats and stay so; --dtype casts the wider types only"));
        }
        Ok(())
    }
}

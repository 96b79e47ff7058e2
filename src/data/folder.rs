//! Folders of images, as timm's `ReaderImageFolder` reads them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::labels::number;
use super::{ClassIds, DataError, LabelMap, SetProblem, natural};

/// How deep folders may be nested.
pub const MAX_FOLDER_DEPTH: usize = 64;

/// Endings of image files, whatever their case. timm takes the first three, and the others when it is told to.
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "bmp"];

/// An image in a folder.
struct Image {
    path: PathBuf,
    /// Its path below the folder.
    name: String,
    /// The name of the folder that it is in; none for an image that is in no class folder.
    class: Option<String>,
}

/// A sample in a folder.
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// Its path below the folder.
    pub(super) name: String,
    pub(super) label: Option<usize>,
}

/// The images in a folder and its classes; without class folders there are neither classes nor labels.
pub(super) fn read(
    root: &Path,
    map: Option<&LabelMap>,
    ids: ClassIds,
) -> Result<(Vec<Found>, Option<LabelMap>), DataError> {
    let mut walk = Walk { root, images: Vec::new(), empty: Vec::new(), inside: Vec::new() };
    walk.folder(root, String::new(), None)?;
    let Walk { mut images, mut empty, .. } = walk;
    images.sort_by(|a, b| natural::compare(&a.name, &b.name).then_with(|| a.path.cmp(&b.path)));
    empty.sort_by(|a, b| natural::compare(a, b));
    let wrong = |problem| DataError::Set { path: root.to_owned(), problem };
    if images.is_empty() {
        return Err(wrong(SetProblem::Empty));
    }
    let classed = images.iter().any(|image| image.class.is_some());
    if let Some(image) = images.iter().find(|image| image.class.is_none()).filter(|_| classed) {
        return Err(wrong(SetProblem::Mixed { image: image.name.clone() }));
    }
    let classes = match map {
        _ if !classed => None,
        Some(map) => Some(map.clone()),
        None => Some(number_classes(&images, empty, ids).map_err(wrong)?),
    };
    let found = images.into_iter().map(|image| {
        let label = match (&classes, image.class) {
            (Some(classes), Some(class)) => Some(classes.id(&class).ok_or_else(|| SetProblem::UnknownClass {
                place: format!("the image {:?}", image.name),
                label: class,
                listed: true,
            })?),
            _ => None,
        };
        Ok(Found { path: image.path, name: image.name, label })
    });
    let found = found.collect::<Result<_, _>>().map_err(wrong)?;
    Ok((found, classes))
}

/// Gives the class folders their numbers. `empty` are the folders without images.
fn number_classes(images: &[Image], empty: Vec<String>, ids: ClassIds) -> Result<LabelMap, SetProblem> {
    let mut names: Vec<&str> = images.iter().filter_map(|image| image.class.as_deref()).collect();
    names.sort_by(|a, b| natural::compare(a, b));
    names.dedup();
    if ids == ClassIds::Numbers {
        let numbered = |name: &&str| {
            number(name)
                .map(|id| ((*name).to_owned(), id))
                .ok_or_else(|| SetProblem::NotANumber { name: (*name).into() })
        };
        return LabelMap::from_pairs(names.iter().map(numbered).collect::<Result<Vec<_>, _>>()?);
    }
    if let Some(folder) = empty.into_iter().next() {
        return Err(SetProblem::EmptyClass { folder });
    }
    if ids == ClassIds::Checked && names.iter().all(|name| number(name).is_some()) {
        let other = names.iter().enumerate().find(|(position, name)| number(name) != Some(*position));
        if let Some((position, name)) = other {
            return Err(SetProblem::NumberedClasses { name: (*name).to_owned(), position });
        }
    }
    LabelMap::from_names(names.into_iter().map(str::to_owned))
}

/// A walk through folders; links to folders are followed.
struct Walk<'r> {
    root: &'r Path,
    images: Vec<Image>,
    /// Folders without any image below them, by their paths below the root.
    empty: Vec<String>,
    /// The folders that the walk is in, without links.
    inside: Vec<PathBuf>,
}

impl Walk<'_> {
    /// Goes through one folder, `name` below the root, whose images are of the class `class`. Returns whether there are any.
    fn folder(&mut self, path: &Path, name: String, class: Option<&str>) -> Result<bool, DataError> {
        let wrong = |problem| DataError::Set { path: self.root.to_owned(), problem };
        let io = |source| DataError::Io { path: path.to_owned(), source };
        if self.inside.len() > MAX_FOLDER_DEPTH {
            return Err(wrong(SetProblem::Depth { folder: name }));
        }
        let real = fs::canonicalize(path).map_err(io)?;
        if self.inside.contains(&real) {
            return Err(wrong(SetProblem::Loop { folder: name }));
        }
        let mut folders = Vec::new();
        let mut any = false;
        for entry in fs::read_dir(path).map_err(io)? {
            let entry = entry.map_err(io)?;
            let (path, file) = (entry.path(), entry.file_name());
            let text = file.to_string_lossy();
            let below = if name.is_empty() { text.clone().into_owned() } else { format!("{name}/{text}") };
            if is_folder(&path).map_err(|source| DataError::Io { path: path.clone(), source })? {
                folders.push((path, below, file));
            } else if is_image(&path) {
                any = true;
                self.images.push(Image { path, name: below, class: class.map(str::to_owned) });
            }
        }
        if any && class.is_none() && !name.is_empty() {
            return Err(wrong(SetProblem::FolderName { folder: name }));
        }
        self.inside.push(real);
        let mut empty = Vec::new();
        for (path, below, file) in folders {
            if self.folder(&path, below.clone(), file.to_str())? {
                any = true;
            } else if !file.as_encoded_bytes().starts_with(b".") {
                empty.push(below);
            }
        }
        self.inside.pop();
        // If there is nothing here either, the folder that this is in says so.
        if any {
            self.empty.append(&mut empty);
        }
        Ok(any)
    }
}

/// Whether this is a folder, or a link to one. A link that leads nowhere is none.
fn is_folder(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.is_dir()),
        // If it should be an image, that is told when the sample is read.
        Err(_) if path.is_symlink() => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

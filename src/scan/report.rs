//! What a scan finds: findings, uses, reports.

use std::borrow::Cow;
use std::fmt;

/// How bad something is; the order is from harmless to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// On one of the allow-lists.
    Allowed,
    /// Nothing that would run by itself, but no honest writer makes it: a trick, or damage.
    Suspicious,
    /// On no list: nobody can say what it would do.
    Unknown,
    /// Known to run code, to reach files, processes or the network, or to undo the rest of these checks.
    Dangerous,
}

impl Level {
    /// The stable name used in JSON: `allowed`, `suspicious`, `unknown`, `dangerous`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Level::Allowed => "allowed",
            Level::Suspicious => "suspicious",
            Level::Unknown => "unknown",
            Level::Dangerous => "dangerous",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! rules {
    ($( $(#[doc = $doc:literal])+ $name:ident $id:literal $title:literal; )*) => {
        /// What kind of finding it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Rule { $( $(#[doc = $doc])+ $name, )* }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Rule] = &[ $( Rule::$name, )* ];

            /// The stable name used in JSON and SARIF.
            #[must_use]
            pub fn id(self) -> &'static str {
                match self { $( Rule::$name => $id, )* }
            }

            /// What the rule is about, in one sentence.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $( Rule::$name => $title, )* }
            }
        }
    };
}

rules! {
    /// A global that runs code or reaches files, processes or the network.
    DangerousGlobal "dangerous-global" "A pickle names something that can run code, or reach files, processes or the network.";
    /// A global on no allow-list.
    UnknownGlobal "unknown-global" "A pickle names something that is on no allow-list.";
    /// A global whose name is computed.
    HiddenGlobal "hidden-global" "A pickle imports something whose name cannot be told without running it.";
    /// An extension code.
    ExtensionCode "extension-code" "A pickle imports by a number of the loading program's extension registry.";
    /// A call of something that is no global.
    UnknownCall "unknown-call" "A pickle calls something that is not named in it.";
    /// A global is changed.
    PatchedGlobal "patched-global" "A pickle changes a class, function or module instead of an object.";
    /// An allowed function is called with arguments that no honest writer gives it.
    OddArguments "odd-arguments" "An allowed function is called with arguments that no honest writer gives it.";
    /// A persistent id that names no storage.
    OddPersistentId "odd-persistent-id" "A persistent id is not one of a storage.";
    /// A pickle that breaks off.
    BrokenPickle "broken-pickle" "A pickle breaks off; what comes before the break is executed all the same.";
    /// A pickle that readers understand differently.
    PickleTrick "pickle-trick" "A pickle is written so that readers understand it differently.";
    /// More after the end of a pickle.
    AfterStop "after-stop" "Bytes follow the end of a pickle.";
    /// A pickle where none should be.
    HiddenPickle "hidden-pickle" "A pickle lies where no pickle belongs.";
    /// The headers of an entry disagree.
    ZipMismatch "zip-mismatch" "The local and central headers of a zip entry disagree.";
    /// An entry occurs twice.
    ZipDuplicate "zip-duplicate" "A zip archive has several entries of one name.";
    /// Flags that contradict the data.
    ZipFlags "zip-flags" "The flags of a zip entry contradict its data.";
    /// A wrong checksum.
    ZipChecksum "zip-checksum" "The checksum of a zip entry is wrong.";
    /// Bytes that belong to no entry.
    ZipOutside "zip-outside" "A zip archive holds bytes that belong to none of its entries.";
    /// Entries that share bytes.
    ZipOverlap "zip-overlap" "Zip entries share bytes.";
    /// Names that readers understand differently.
    ZipName "zip-name" "The name of a zip entry is understood differently by different readers.";
    /// A directory that readers understand differently.
    ZipDirectory "zip-directory" "The directory of a zip archive is understood differently by different readers.";
    /// Data that expands out of proportion.
    Bomb "bomb" "Compressed data expands out of all proportion.";
    /// A safetensors header that lies.
    Safetensors "safetensors-header" "A safetensors header does not describe its file.";
    /// A tar archive that lies.
    Tar "tar-archive" "A tar archive is malformed, or is executed by old versions of PyTorch.";
    /// A legacy stream that lies.
    Legacy "legacy-stream" "A legacy PyTorch file is not what its pickles describe.";
    /// One file, two formats.
    Polyglot "polyglot" "A file is of two formats at once.";
    /// A pickle behind the name of something else.
    Misnamed "misnamed-pickle" "A pickle hides behind the extension of something else.";
    /// TorchScript code that reaches files.
    Script "script-files" "TorchScript code reads or writes files.";
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// What kind.
    pub rule: Rule,
    /// Where in the file: the names of the entries that lead there, separated by `!`; empty for the file itself.
    pub path: String,
    /// Where in the innermost of them, in bytes.
    pub offset: u64,
    /// Where in the file, in bytes; `None` for what is compressed.
    pub file_offset: Option<u64>,
    /// What, and why it matters.
    pub message: String,
}

/// The kinds of thing that a pickle does besides holding values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UseKind {
    /// It imports a global.
    Global,
    /// It calls something.
    Call,
    /// It asks the loading program for an object by an id.
    PersistentId,
}

impl UseKind {
    /// The stable name used in JSON: `global`, `call`, `persistent-id`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            UseKind::Global => "global",
            UseKind::Call => "call",
            UseKind::PersistentId => "persistent-id",
        }
    }
}

/// One thing that a pickle does besides holding values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// What it does.
    pub kind: UseKind,
    /// The offset of the opcode in the pickle's stream, in bytes.
    pub offset: u64,
    /// The place in [`PickleReport::names`] of what it does it to.
    pub name: u32,
}

/// A name that a pickle uses, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `module.name` as Python 3 resolves it; a text in angle brackets where there is no name.
    pub name: String,
    /// How bad.
    pub level: Level,
    /// Why.
    pub because: Cow<'static, str>,
}

/// One pickle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickleReport {
    /// Where in the file, as in [`Finding::path`].
    pub path: String,
    /// Where it begins in the innermost stream, in bytes.
    pub offset: u64,
    /// Its length in bytes, up to and with its end mark; up to the break if it is broken.
    pub length: u64,
    /// The protocol it says it is of; 0 if it says none.
    pub protocol: u8,
    /// Whether its end mark was reached.
    pub complete: bool,
    /// What it uses.
    pub names: Vec<Name>,
    /// Every global, call and persistent id, in the order of execution.
    pub uses: Vec<Use>,
}

/// What `torch.load(path, weights_only=True)` would do, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsOnly {
    /// Whether it would load the file.
    pub accepts: bool,
    /// Why.
    pub because: String,
}

/// What came of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// All of it was looked at, and there is nothing to report.
    Clean,
    /// There are findings.
    Finding,
    /// There are no findings, but part of it could not be looked at: never clean.
    NotScannable,
}

impl Verdict {
    /// The stable name used in JSON: `clean`, `finding`, `not-scannable`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Clean => "clean",
            Verdict::Finding => "finding",
            Verdict::NotScannable => "not-scannable",
        }
    }
}

/// All that is known about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReport {
    /// Bytes of the file.
    pub bytes: u64,
    /// What the file is, in words.
    pub kind: Cow<'static, str>,
    /// What `torch.load` would do with it by default.
    pub weights_only: WeightsOnly,
    /// The worst first, then in the order of the file.
    pub findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub not_scanned: Vec<String>,
    /// Every pickle that was found.
    pub pickles: Vec<PickleReport>,
}

impl FileReport {
    /// What came of it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if !self.findings.is_empty() {
            Verdict::Finding
        } else if !self.not_scanned.is_empty() {
            Verdict::NotScannable
        } else {
            Verdict::Clean
        }
    }

    /// The level of the worst finding; [`Level::Allowed`] if there is none.
    #[must_use]
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Allowed)
    }
}

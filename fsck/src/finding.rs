//! What a check finds: a stable code, where, whom it touches, and what can be done.
//!
//! F1  A code never changes its meaning and is never used again for another; text may change.
//! F2  A note is what the next opening sees to by itself, or waits for a person; only damage decides the exit code.

use std::fmt;

use serde::{Serialize, Serializer};

/// What is wrong. `docs/fsck.md` has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Code {
    /// `FORMAT` is not there.
    FormatMissing,
    /// `FORMAT` is not as it was written.
    FormatDamaged,
    /// The log is not as it was written.
    LogDamaged,
    /// The last batch of the log was cut while it was written.
    LogTorn,
    /// The store was not closed in order.
    NotClosed,
    /// A directory of the store is missing.
    DirectoryMissing,
    /// A directory of the store has another mode.
    DirectoryMode,
    /// A name that belongs to nothing.
    ForeignName,
    /// A recorded object is not on the disk.
    ObjectMissing,
    /// A recorded object is still where it was staged.
    ObjectStaged,
    /// Something that no record names.
    LeftOver,
    /// Something waits for deletion.
    TrashWaiting,
    /// Something waits for a person.
    QuarantineWaiting,
    /// A tag names an image that is not recorded.
    TagWithoutImage,
    /// An image lacks its config, manifest or a layer.
    ImageIncomplete,
    /// A container's image is not recorded.
    ContainerWithoutImage,
    /// The second copy of the facts cannot be read.
    SecondCopyDamaged,
    /// A blob is not what its digest says.
    BlobContent,
    /// A blob has another mode or owner.
    BlobAttributes,
    /// A layer's recipe cannot be read.
    RecipeDamaged,
    /// A layer's recipe is not there.
    RecipeMissing,
    /// What the log says of a layer or an image is not what the object itself says.
    RecordDisagrees,
    /// A file's bytes are not those that were stored.
    FileContent,
    /// A file has another length.
    FileSize,
    /// A node is of another kind.
    NodeKind,
    /// A node has another mode.
    NodeMode,
    /// A node has another owner or group.
    NodeOwner,
    /// A node has another time of modification.
    NodeTime,
    /// A node has other extended attributes.
    NodeXattrs,
    /// A symbolic link leads elsewhere.
    LinkTarget,
    /// A device node has another number.
    DeviceNumber,
    /// A name of a layer is not there.
    NameMissing,
    /// A layer has a name that is not its own.
    NameExtra,
    /// Names that should lead to one file do not, or names of two files lead to one.
    HardLinks,
    /// A layer is marked suspect: the next pull fetches it again.
    LayerSuspect,
    /// A container's configuration cannot be read.
    ContainerConfig,
    /// A container lacks its upper directory or another part of its folder.
    ContainerIncomplete,
    /// The disk cannot read something.
    ReadError,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Seen to by the next opening, or waiting for a person; nothing is lost (F2).
    Note,
    /// Something stored is not as it was.
    Damage,
}

impl Code {
    /// All codes, in the order of the table.
    pub const ALL: [Code; 38] = [
        Code::FormatMissing,
        Code::FormatDamaged,
        Code::LogDamaged,
        Code::LogTorn,
        Code::NotClosed,
        Code::DirectoryMissing,
        Code::DirectoryMode,
        Code::ForeignName,
        Code::ObjectMissing,
        Code::ObjectStaged,
        Code::LeftOver,
        Code::TrashWaiting,
        Code::QuarantineWaiting,
        Code::TagWithoutImage,
        Code::ImageIncomplete,
        Code::ContainerWithoutImage,
        Code::SecondCopyDamaged,
        Code::BlobContent,
        Code::BlobAttributes,
        Code::RecipeDamaged,
        Code::RecipeMissing,
        Code::RecordDisagrees,
        Code::FileContent,
        Code::FileSize,
        Code::NodeKind,
        Code::NodeMode,
        Code::NodeOwner,
        Code::NodeTime,
        Code::NodeXattrs,
        Code::LinkTarget,
        Code::DeviceNumber,
        Code::NameMissing,
        Code::NameExtra,
        Code::HardLinks,
        Code::LayerSuspect,
        Code::ContainerConfig,
        Code::ContainerIncomplete,
        Code::ReadError,
    ];

    /// The code as it is printed (F1).
    pub fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// How much it matters.
    pub fn severity(self) -> Severity {
        self.facts().1
    }

    /// What can be done.
    pub fn remedy(self) -> &'static str {
        self.facts().2
    }

    fn facts(self) -> (&'static str, Severity, &'static str) {
        use Severity::{Damage, Note};
        const FETCH: &str = "--repair copies it from a duplicate, or marks the layer so that the next pull fetches it";
        const RESTORE: &str = "--repair sets it again from the recipe";
        const OPENING: &str = "the daemon sees to it when it starts";
        match self {
            Code::FormatMissing => ("format-missing", Damage, "--repair writes it again from the log"),
            Code::FormatDamaged => ("format-damaged", Damage, "--repair writes it again from the log"),
            Code::LogDamaged => (
                "log-damaged",
                Damage,
                "--repair writes a new log from what is readable, and from the objects themselves",
            ),
            Code::LogTorn => ("log-torn", Note, OPENING),
            Code::NotClosed => ("not-closed", Note, OPENING),
            Code::DirectoryMissing => ("directory-missing", Damage, "--repair makes it again"),
            Code::DirectoryMode => ("directory-mode", Note, OPENING),
            Code::ForeignName => ("foreign-name", Note, "look at it and remove it; the engine never touches it"),
            Code::ObjectMissing => {
                ("object-missing", Damage, "pull the image again; a lost container has to be made anew")
            }
            Code::ObjectStaged => ("object-staged", Note, OPENING),
            Code::LeftOver => ("left-over", Note, OPENING),
            Code::TrashWaiting => ("trash-waiting", Note, "the daemon empties it in the background"),
            Code::QuarantineWaiting => ("quarantine-waiting", Note, "look at it and remove it"),
            Code::TagWithoutImage => ("tag-without-image", Damage, "pull the image again"),
            Code::ImageIncomplete => ("image-incomplete", Damage, "pull the image again"),
            Code::ContainerWithoutImage => ("container-without-image", Damage, "pull the image again"),
            Code::SecondCopyDamaged => ("second-copy-damaged", Note, "the daemon writes it anew"),
            Code::BlobContent => ("blob-content", Damage, "--repair mends one flipped bit; else pull the image again"),
            Code::BlobAttributes => ("blob-attributes", Damage, "--repair sets them again"),
            Code::RecipeDamaged => {
                ("recipe-damaged", Damage, "--repair marks the layer; the next pull fetches it again")
            }
            Code::RecipeMissing => {
                ("recipe-missing", Damage, "--repair marks the layer; the next pull fetches it again")
            }
            Code::RecordDisagrees => ("record-disagrees", Damage, "pull the image again"),
            Code::FileContent => ("file-content", Damage, FETCH),
            Code::FileSize => ("file-size", Damage, FETCH),
            Code::NodeKind => ("node-kind", Damage, FETCH),
            Code::NodeMode => ("node-mode", Damage, RESTORE),
            Code::NodeOwner => ("node-owner", Damage, RESTORE),
            Code::NodeTime => ("node-time", Damage, RESTORE),
            Code::NodeXattrs => ("node-xattrs", Damage, RESTORE),
            Code::LinkTarget => ("link-target", Damage, RESTORE),
            Code::DeviceNumber => ("device-number", Damage, RESTORE),
            Code::NameMissing => ("name-missing", Damage, FETCH),
            Code::NameExtra => ("name-extra", Damage, "--repair moves it to quarantine/"),
            Code::HardLinks => ("hard-links", Damage, FETCH),
            Code::LayerSuspect => ("layer-suspect", Damage, "pull the image again"),
            Code::ContainerConfig => {
                ("container-config", Damage, "make the container anew; its upper directory is untouched")
            }
            Code::ContainerIncomplete => ("container-incomplete", Damage, "make the container anew"),
            Code::ReadError => ("read-error", Damage, "the disk is failing: save what matters and replace it"),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What has become of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "what")]
pub enum Outcome {
    /// Found; nothing was asked for.
    Found,
    /// Put right, and how.
    Corrected(String),
    /// Could not be put right, and why.
    Left(String),
}

/// An image that a finding touches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TouchedImage {
    /// Its id.
    pub id: String,
    /// Its names.
    pub tags: Vec<String>,
}

/// A container that a finding touches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TouchedContainer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// Whom something touches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Touched {
    /// Images, by id.
    pub images: Vec<TouchedImage>,
    /// Containers, by id.
    pub containers: Vec<TouchedContainer>,
}

/// One thing that is not as it was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub code: Code,
    /// How much it matters.
    pub severity: Severity,
    /// Where, below the data root. Bytes that are not UTF-8 are shown as `\xNN`.
    pub path: String,
    /// What was found and what was expected.
    pub detail: String,
    /// Whom it touches.
    #[serde(flatten)]
    pub touched: Touched,
    /// What can be done.
    pub remedy: &'static str,
    /// What has become of it.
    pub outcome: Outcome,
}

impl Finding {
    pub(crate) fn new(code: Code, path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.severity(),
            path: path.into(),
            detail: detail.into(),
            touched: Touched::default(),
            remedy: code.remedy(),
            outcome: Outcome::Found,
        }
    }

    pub(crate) fn touching(mut self, touched: Touched) -> Self {
        self.touched = touched;
        self
    }
}

/// A path of a layer as text: what is not plain UTF-8 is shown as `\xNN`, so that it stays one line and one meaning.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' => text.push_str("\\\\"),
                letter if letter.is_control() => {
                    let mut bytes = [0; 4];
                    letter.encode_utf8(&mut bytes).bytes().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
                }
                letter => text.push(letter),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_name_and_no_name_is_used_twice() {
        let names: std::collections::BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
    }

    #[test]
    fn a_path_is_shown_on_one_line_whatever_its_bytes() {
        assert_eq!(shown(b"a/b c"), "a/b c");
        assert_eq!(shown(b"a\n\x1b\xff\\"), "a\\x0a\\x1b\\xff\\\\");
    }
}

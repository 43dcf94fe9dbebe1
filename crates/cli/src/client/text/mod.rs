//! What people read: sizes and times, tables, templates of `--format`, ordered JSON.

pub(crate) mod format;
pub(crate) mod template;
pub(crate) mod units;
pub(crate) mod value;

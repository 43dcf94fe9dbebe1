//! Attached clients and terminals.

use crate::Test;

pub(crate) const TESTS: &[Test] = &[];

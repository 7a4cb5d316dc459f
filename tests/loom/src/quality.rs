//! A hasher without chance, by the path of foldhash's: a schedule must lead to the same locks each time.

use std::hash::{BuildHasherDefault, DefaultHasher};

/// What the library seeds anew in each process.
pub type RandomState = BuildHasherDefault<DefaultHasher>;
/// What it seeds the same in all.
pub type FixedState = RandomState;

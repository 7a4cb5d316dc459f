//! A hasher without chance, by the path of foldhash's: a schedule must lead to the same locks each time.

use std::hash::{BuildHasherDefault, DefaultHasher};

pub type RandomState = BuildHasherDefault<DefaultHasher>;
pub type FixedState = RandomState;

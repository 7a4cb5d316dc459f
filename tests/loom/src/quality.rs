//! A hasher without chance, by the path of foldhash's random one: a schedule must lead to the same locks each time.

use std::hash::{BuildHasherDefault, DefaultHasher};

pub type RandomState = BuildHasherDefault<DefaultHasher>;

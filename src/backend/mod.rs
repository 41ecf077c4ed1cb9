//! Storage backends at run time.

pub mod peers;

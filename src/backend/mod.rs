//! Storage backends at run time.

pub mod capacity;
pub mod locks;
pub mod peers;

//! What makes a process of the library: start-up, heartbeat, reports, drain, logging.

pub mod logging;

//! map
pub mod sim;

//! Every chat message of a Zoom account, whole, fast and unattended.
pub mod archive;
pub mod capture;
pub mod clock;
pub mod extract;
pub mod jobs;
pub mod json;
pub mod sim;
pub mod zoom;

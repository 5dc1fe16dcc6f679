//! Every chat message of a Zoom account, whole, fast and unattended.
pub mod clock;
pub mod sim;
pub mod zoom;

//! Every chat message of a Zoom account, whole, fast and unattended.
pub mod capture;
pub mod clock;
pub mod extract;
pub mod sim;
pub mod zoom;

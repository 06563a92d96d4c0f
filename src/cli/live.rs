//! Names that a page which computes and the program that writes it share.

/// Name of the profile of the machine that made the page.
pub const THIS_MACHINE: &str = "this-machine.json";

//! Reports on captchas.

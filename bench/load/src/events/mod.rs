//! What the events of a run look like.
//!
//! A [`Draft`] is what a draw decides about an event: the counter that it belongs to, its time, its user. It is rendered once; what makes an
//! event new (its key, and the number of a hit's user) lies at fixed places of the text, the [`Marks`], and is written over.

mod captcha;
mod hit;

pub use captcha::Captcha;
pub use hit::{Action, Hit};

use crate::random::{Dice, Keys};

/// What a draw decides about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draft {
    /// The counter of the report that it belongs to.
    pub cell: u32,
    /// Where in the day or hour it lies, and other detail that is not counted.
    pub detail: u64,
}

/// Where in the rendered text the parts lie that change. `NONE` where there is no such part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    pub key: u32,
    pub user: u32,
}

pub const NONE: u32 = u32::MAX;

/// The kind of the events, and what is known of all of them.
#[derive(Debug, Clone)]
pub enum Kind {
    Captcha(Captcha),
    Hit(Hit),
}

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A JSON object, as a line or a body.
    Json,
    /// The query of a request's target.
    Query,
}

/// Why a bad event is bad: each in turn.
pub const BAD_WAYS: u64 = 3;

impl Kind {
    /// Draws an event; `late` ones lie before the time of the others.
    pub fn draft(&self, dice: &mut Dice, late: bool) -> Draft {
        match self {
            Kind::Captcha(captcha) => captcha.draft(dice, late),
            Kind::Hit(hit) => hit.draft(dice, late),
        }
    }

    /// Appends the event's text. With `bad`, one that must be rejected, in that way.
    pub fn render(&self, draft: Draft, bad: Option<u64>, form: Form, into: &mut Vec<u8>) -> Marks {
        match (self, form) {
            (Kind::Captcha(captcha), _) => captcha.json(draft, bad, into),
            (Kind::Hit(hit), Form::Json) => hit.json(draft, bad, into),
            (Kind::Hit(hit), Form::Query) => hit.query(draft, bad, into),
        }
    }

    /// The number of counters.
    pub fn cells(&self) -> usize {
        match self {
            Kind::Captcha(captcha) => captcha.cells(),
            Kind::Hit(hit) => hit.cells(),
        }
    }

    /// The number of different users; 0 where users are not counted.
    pub fn users(&self) -> u32 {
        match self {
            Kind::Captcha(_) => 0,
            Kind::Hit(hit) => hit.users,
        }
    }

    /// Whose event this is, as a number below `users`.
    pub fn user(&self, keys: &Keys, number: u64) -> u32 {
        ((u128::from(keys.draw(number)) * u128::from(self.users())) >> 64) as u32
    }

    /// Where bodies of such events are posted to.
    pub fn path(&self) -> &'static str {
        match self {
            Kind::Captcha(_) => "/v1/events",
            Kind::Hit(_) => "/hits",
        }
    }
}

/// Fills a JSON object, of which the closing brace is missing, up to a size with a field that the server ignores.
fn pad(into: &mut Vec<u8>, start: usize, bytes: usize) {
    const FRAME: &str = ",\"pad\":\"\"";
    let missing = (start + bytes).saturating_sub(into.len() + 1);
    if missing >= FRAME.len() {
        into.extend_from_slice(b",\"pad\":\"");
        into.resize(into.len() + missing - FRAME.len(), b'x');
        into.push(b'"');
    }
}

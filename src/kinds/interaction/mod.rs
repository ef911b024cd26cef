//! Interactions: what users did, as immutable events of types that a user of millrace defines, counted by UTC day and type.
//!
//! An event is `{"session_id","category","name","data","timestamp","event_id"?}`; its type is `category.name`, and each type
//! has a JSON Schema that its `data` must fit. An event with an `event_id` (or one made from the request's
//! `Idempotency-Key`) is counted once over all history, one without is always new. [`parse`] reads one event, [`types`]
//! holds the schemas in force, [`columns`] carries many events, [`counters`] adds them up, [`report`] and [`timeline`] ask and
//! answer.

pub mod columns;
pub mod counters;
mod document;
mod member;
pub mod parse;
pub mod report;
pub mod schema;
pub mod timeline;
pub mod types;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

pub use columns::InteractionColumns;
pub use counters::InteractionCounters;
pub use parse::{InteractionEvent, Origin};

use simd_json::tape::Value;

use super::migrations::{Migration, migration};
use super::{CountersSql, Endpoints, Key, KeySql, Kind, Rejection, Sent};
use crate::config::{Config, UnknownTypes};
use report::InteractionReport;
use timeline::Timeline;
use types::Types;

/// The kind.
#[derive(Debug)]
pub struct Interaction {
    /// Where the schemas are read from; the built-in ones without.
    folder: Option<PathBuf>,
    accept_unknown: bool,
    future_us_max: i64,
    /// Replaced as a whole, so that a request sees one set from its first event to its last.
    types: RwLock<Arc<Types>>,
}

impl Interaction {
    fn types(&self) -> Arc<Types> {
        self.types.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Kind for Interaction {
    const NAME: &'static str = "interaction";
    const SCHEMA_VERSION: u16 = 1;
    /// Lane 0 holds the ids that were sent, lane 1 those that were made.
    const KEY_LANES: u8 = 2;
    const KEY_SQL: KeySql = KeySql::EVENT_ID;
    const COUNTERS_SQL: CountersSql = CountersSql {
        key: &["day", "category", "name"],
        recount_key: &["toDate32(timestamp)", "category", "name"],
        // A category has no dot, so that no two types look alike.
        name: "concat('day ', toString(day), ', type ', category, '.', name)",
        values: &["count"],
        recount_values: &["count()"],
    };
    const MIGRATIONS: &'static [Migration] = &[
        migration!("interaction", 1, "events"),
        migration!("interaction", 2, "counters"),
        migration!("interaction", 3, "logs"),
    ];
    type Columns = InteractionColumns;
    type Counters = InteractionCounters;
    type Event<'v> = InteractionEvent<'v>;
    type Rules = Arc<Types>;

    fn open(config: &Config) -> Result<Interaction, String> {
        let config = &config.interaction;
        let folder = config.schemas.clone();
        let accept_unknown = config.unknown_types == UnknownTypes::Accept;
        let future_us_max = config.future_ms_max as i64 * 1000;
        let types = Types::load(folder.as_deref(), accept_unknown, future_us_max)
            .map_err(|error| format!("interaction.schemas (MILLRACE_INTERACTION_SCHEMAS): {error}"))?;
        Ok(Interaction { folder, accept_unknown, future_us_max, types: RwLock::new(Arc::new(types)) })
    }

    fn in_force(&self) -> Option<String> {
        Some(self.types().summary())
    }

    fn reload(&self) -> Result<String, String> {
        let types = Arc::new(Types::load(self.folder.as_deref(), self.accept_unknown, self.future_us_max)?);
        let summary = types.summary();
        // The old set goes when the last request that began with it has ended.
        *self.types.write().unwrap_or_else(PoisonError::into_inner) = types;
        Ok(summary)
    }

    fn endpoints(on: &mut impl Endpoints<Interaction>) {
        ["/v2/events", "/v2/event"].into_iter().for_each(|path| on.accept(path));
        on.report::<Timeline>("/v2/events");
        on.report::<InteractionReport>("/v2/report");
        on.document("/v2/schema", |kind| kind.types().document().to_vec());
    }

    fn rules(&self) -> Arc<Types> {
        self.types()
    }

    fn parse<'v>(types: &Arc<Types>, value: Value<'_, 'v>, sent: Sent<'v>) -> Result<InteractionEvent<'v>, Rejection> {
        parse::parse(types, value, sent)
    }

    #[inline]
    fn partition_key<'e>(event: &'e InteractionEvent<'_>) -> &'e [u8] {
        if event.origin == Origin::None { &event.session_id } else { &event.event_id }
    }

    #[inline]
    fn push(columns: &mut InteractionColumns, event: &InteractionEvent<'_>) {
        columns.push(event);
    }

    #[inline]
    fn key(columns: &InteractionColumns, row: usize) -> Option<Key> {
        columns.key(row)
    }
}

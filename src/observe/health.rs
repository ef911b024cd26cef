//! Whether the program is alive, and whether it does its work: a registry of named conditions.
//!
//! A [`Condition`] is something that the program needs from outside (Kafka, ClickHouse, the schema, a partition that
//! can be stored); its owner says whether it holds, and why not. Each condition says what does not work without it.
//! A [`Pulse`] is a part of the program itself that must not hang.
//!
//! What "ready" means: a load balancer asks in order to know where to send events, so the answer is 503 only when the
//! program's first duty cannot be done. For a program that accepts this is accepting: it needs Kafka, and while
//! ClickHouse is away events are safe in the log, so the answer stays 200 with the status `degraded` and with what is
//! missing. For a program that only stores it is storing, which needs both. An orderly end is "not ready".

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::exchange::{Answer, Endpoint, Head};

/// What the program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Takes events into the log.
    Accept,
    /// Moves them into the store.
    Store,
    /// Answers reports.
    Report,
}

impl Duty {
    fn name(self) -> &'static str {
        match self {
            Duty::Accept => "accept",
            Duty::Store => "store",
            Duty::Report => "report",
        }
    }
}

/// All conditions and pulses of the program.
#[derive(Debug)]
pub struct Health {
    first_duty: Duty,
    stopping: AtomicBool,
    started: Instant,
    next_id: AtomicU64,
    // Held only to read or change a few words, never across a yield of a coroutine.
    conditions: Mutex<BTreeMap<(String, u64), State>>,
    pulses: Mutex<Vec<Arc<Beats>>>,
}

#[derive(Debug, Clone)]
struct State {
    without_it: &'static [Duty],
    missing: Option<String>,
}

/// One named condition. It is forgotten when this handle is dropped.
#[derive(Debug)]
pub struct Condition {
    health: Arc<Health>,
    key: (String, u64),
}

/// The heartbeat of a part of the program. It is forgotten when this handle is dropped.
#[derive(Debug)]
pub struct Pulse {
    health: Arc<Health>,
    beats: Arc<Beats>,
}

#[derive(Debug)]
struct Beats {
    name: &'static str,
    silence_ms_max: u64,
    last_ms: AtomicU64,
}

impl Health {
    /// Without conditions; `first_duty` decides what "ready" means.
    pub fn new(first_duty: Duty) -> Arc<Health> {
        Arc::new(Health {
            first_duty,
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            next_id: AtomicU64::new(0),
            conditions: Mutex::default(),
            pulses: Mutex::default(),
        })
    }

    /// A condition that is missing (for `reason`) until its owner says otherwise. `without_it` are the duties that
    /// cannot be done while it is missing.
    pub fn condition(
        self: &Arc<Health>,
        name: impl Into<String>,
        without_it: &'static [Duty],
        reason: impl Into<String>,
    ) -> Condition {
        let key = (name.into(), self.next_id.fetch_add(1, Ordering::Relaxed));
        let state = State { without_it, missing: Some(reason.into()) };
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), state);
        Condition { health: self.clone(), key }
    }

    /// A part of the program that beats at least every `silence_max` unless it hangs.
    pub fn pulse(self: &Arc<Health>, name: &'static str, silence_max: Duration) -> Pulse {
        let silence_ms_max = u64::try_from(silence_max.as_millis()).unwrap_or(u64::MAX);
        let beats = Arc::new(Beats { name, silence_ms_max, last_ms: AtomicU64::new(self.now_ms()) });
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner).push(beats.clone());
        Pulse { health: self.clone(), beats }
    }

    /// An orderly end has begun: not ready from now on.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The name of a part of the program that has been silent for too long.
    pub fn silent(&self) -> Option<&'static str> {
        let now_ms = self.now_ms();
        let pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        let late = |beats: &Beats| now_ms.saturating_sub(beats.last_ms.load(Ordering::Relaxed)) > beats.silence_ms_max;
        pulses.iter().find(|beats| late(beats)).map(|beats| beats.name)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// 200 `{"status":"live"}`, or 503 with what hangs.
    pub fn live(&self) -> Answer {
        match self.silent() {
            None => answer(200, &json!({"status": "live"})),
            Some(pulse) => answer(503, &json!({"status": "hanging", "hanging": pulse})),
        }
    }

    /// 200 or 503 with what is missing, why, and what cannot be done meanwhile.
    pub fn ready(&self) -> Answer {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing = conditions.iter().filter_map(|((name, _), state)| {
            let reason = state.missing.as_deref()?;
            Some((name.as_str(), state.without_it, reason))
        });
        let missing: Vec<(&str, &[Duty], &str)> = missing.collect();
        let stopping = self.stopping.load(Ordering::Acquire);
        let (status, word) = match () {
            () if stopping => (503, "stopping"),
            () if missing.iter().any(|(_, without_it, _)| without_it.contains(&self.first_duty)) => (503, "not_ready"),
            () if !missing.is_empty() => (200, "degraded"),
            () => (200, "ready"),
        };
        let listed: Vec<_> = missing
            .iter()
            .map(|(name, without_it, reason)| {
                let stalled: Vec<_> = without_it.iter().map(|duty| duty.name()).collect();
                json!({"name": name, "reason": reason, "stalled": stalled})
            })
            .collect();
        answer(status, &json!({"status": word, "missing": listed}))
    }
}

fn answer(status: u16, body: &serde_json::Value) -> Answer {
    let mut answer = Answer::json(status, (body.to_string() + "\n").into_bytes());
    answer.retry_after_s = (status == 503).then_some(1);
    answer
}

impl Condition {
    /// It holds.
    pub fn holds(&self) {
        self.change(None);
    }

    /// It does not, and why.
    pub fn missing(&self, reason: impl Into<String>) {
        self.change(Some(reason.into()));
    }

    fn change(&self, missing: Option<String>) {
        let mut conditions = self.health.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = conditions.get_mut(&self.key) {
            state.missing = missing;
        }
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        self.health.conditions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Pulse {
    /// It does not hang. One atomic store.
    pub fn beat(&self) {
        self.beats.last_ms.store(self.health.now_ms(), Ordering::Relaxed);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let mut pulses = self.health.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.retain(|beats| !Arc::ptr_eq(beats, &self.beats));
    }
}

/// `GET /health/live`.
pub struct Live(pub Arc<Health>);

impl Endpoint for Live {
    fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        self.0.live()
    }
}

/// `GET /health/ready`.
pub struct Ready(pub Arc<Health>);

impl Endpoint for Ready {
    fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        self.0.ready()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &Answer) -> (u16, serde_json::Value) {
        (answer.status, serde_json::from_slice(&answer.body).unwrap())
    }

    #[test]
    fn an_accepting_program_is_ready_without_clickhouse() {
        let health = Health::new(Duty::Accept);
        let kafka = health.condition("kafka", &[Duty::Accept, Duty::Store], "not connected yet");
        let clickhouse = health.condition("clickhouse", &[Duty::Store, Duty::Report], "not connected yet");
        let (status, body) = read(&health.ready());
        assert_eq!((status, body["status"].as_str()), (503, Some("not_ready")));
        kafka.holds();
        let (status, body) = read(&health.ready());
        assert_eq!((status, body["status"].as_str()), (200, Some("degraded")));
        assert_eq!(
            body["missing"],
            json!([{"name": "clickhouse", "reason": "not connected yet", "stalled": ["store", "report"]}])
        );
        clickhouse.holds();
        assert_eq!(read(&health.ready()), (200, json!({"status": "ready", "missing": []})));
        kafka.missing("connection refused");
        assert_eq!(read(&health.ready()).0, 503);
        drop(kafka);
        assert_eq!(read(&health.ready()).0, 200);
        health.stopping();
        assert_eq!(read(&health.ready()).1["status"], "stopping");
    }

    #[test]
    fn a_storing_program_needs_clickhouse() {
        let health = Health::new(Duty::Store);
        let clickhouse = health.condition("clickhouse", &[Duty::Store, Duty::Report], "away");
        assert_eq!(read(&health.ready()).0, 503);
        // Two owners may watch conditions of one name.
        let partition = health.condition("partition captcha/0", &[Duty::Store], "halted");
        let again = health.condition("partition captcha/0", &[Duty::Store], "halted");
        clickhouse.holds();
        again.holds();
        assert_eq!(read(&health.ready()).1["missing"].as_array().unwrap().len(), 1);
        drop(partition);
        assert_eq!(read(&health.ready()).0, 200);
    }

    #[test]
    fn a_silent_pulse_is_not_live() {
        let health = Health::new(Duty::Accept);
        assert_eq!(read(&health.live()), (200, json!({"status": "live"})));
        let pulse = health.pulse("writer", Duration::ZERO);
        let deadline = Instant::now() + Duration::from_secs(10);
        while health.silent().is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(read(&health.live()), (503, json!({"status": "hanging", "hanging": "writer"})));
        drop(pulse);
        let pulse = health.pulse("writer", Duration::from_secs(3600));
        pulse.beat();
        assert_eq!(health.silent(), None);
    }
}

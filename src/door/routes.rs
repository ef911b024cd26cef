//! Which endpoint answers which method of which path.
//!
//! In: paths with their endpoints, once, when the program starts. Out: for each request an endpoint, or a fault that
//! says what would have worked. Nothing here is built while a request is served, except the text of a 404.

use std::collections::HashMap;
use std::sync::Arc;

use crate::exchange::{Answer, Endpoint, Fault, Head};

/// The paths that are served. Patterns are exact paths, or end in a parameter (`/v1/events/{id}`) that stands for one
/// segment that is not empty; the endpoint finds it with [`last_segment`](crate::exchange::last_segment). An exact path comes first.
#[derive(Default)]
pub struct Routes {
    entries: Vec<Entry>,
    exact: HashMap<String, usize>,
    /// By everything up to the parameter, which is the last segment.
    prefixes: HashMap<String, usize>,
}

struct Entry {
    pattern: String,
    methods: Vec<(&'static str, Arc<dyn Endpoint>)>,
    allow: &'static str,
}

/// Where the list of paths is answered.
const LIST: &str = "/v1/";

impl Routes {
    /// No paths yet.
    pub fn new() -> Routes {
        Routes::default()
    }

    /// Adds a path with the methods it takes, or further methods of a path. `HEAD` is allowed wherever `GET` is.
    ///
    /// # Panics
    ///
    /// When the pattern is malformed, names a parameter otherwise than before, or has one of the methods already: all are
    /// mistakes in the program.
    #[must_use]
    pub fn route(mut self, pattern: &str, methods: &[(&'static str, Arc<dyn Endpoint>)]) -> Routes {
        assert!(pattern.starts_with('/'), "{pattern} does not start with a slash");
        assert!(!methods.is_empty(), "{pattern} takes no method");
        let (places, place) = match pattern.find('{') {
            None => (&mut self.exact, pattern),
            Some(at) => {
                let parameter = &pattern[at..];
                assert!(pattern[..at].ends_with('/'), "in {pattern} the parameter is not a whole segment");
                assert!(
                    parameter.ends_with('}') && !parameter.contains('/'),
                    "in {pattern} the parameter is not the last segment"
                );
                (&mut self.prefixes, &pattern[..at])
            }
        };
        let index = *places.entry(place.to_owned()).or_insert(self.entries.len());
        if index == self.entries.len() {
            self.entries.push(Entry { pattern: pattern.to_owned(), methods: Vec::new(), allow: "" });
        }
        let entry = &mut self.entries[index];
        assert!(entry.pattern == pattern, "{pattern} was added before as {}", entry.pattern);
        for (method, endpoint) in methods {
            assert!(entry.methods.iter().all(|(known, _)| known != method), "{method} of {pattern} was added before");
            entry.methods.push((*method, Arc::clone(endpoint)));
        }
        let mut allowed: Vec<&str> = entry.methods.iter().map(|(method, _)| *method).collect();
        if allowed.contains(&"GET") && !allowed.contains(&"HEAD") {
            allowed.push("HEAD");
        }
        // Leaked on purpose: built a few times when the program starts, and lives as long as it.
        entry.allow = Box::leak(allowed.join(", ").into_boxed_str());
        self
    }

    /// Adds the list of all paths, as `GET /v1/`, unless that path is taken.
    pub(super) fn with_list(self) -> Routes {
        if self.exact.contains_key(LIST) {
            return self;
        }
        let paths: Vec<_> = self
            .entries
            .iter()
            .map(|e| serde_json::json!({"path": e.pattern, "methods": e.allow.split(", ").collect::<Vec<_>>()}))
            .collect();
        let list = List(serde_json::json!({ "paths": paths }).to_string() + "\n");
        self.route(LIST, &[("GET", Arc::new(list))])
    }

    /// The route's label (its pattern, or `-` where there is none) and what answers.
    pub(crate) fn find(&self, method: &str, path: &str) -> (&str, Result<&Arc<dyn Endpoint>, Fault>) {
        let Some(entry) = self.entry(path) else { return ("-", Err(Fault::NotFound(self.not_found(path)))) };
        let named = |name: &str| entry.methods.iter().find(|(m, _)| *m == name).map(|(_, endpoint)| endpoint);
        let endpoint = named(method).or_else(|| if method == "HEAD" { named("GET") } else { None });
        (&entry.pattern, endpoint.ok_or(Fault::MethodNotAllowed(entry.allow)))
    }

    fn entry(&self, path: &str) -> Option<&Entry> {
        if let Some(&index) = self.exact.get(path) {
            return self.entries.get(index);
        }
        let slash = path.rfind('/')? + 1;
        let (prefix, parameter) = path.split_at(slash);
        if parameter.is_empty() {
            return None;
        }
        self.prefixes.get(prefix).and_then(|&index| self.entries.get(index))
    }

    /// Says what would have worked: the nearest path, or all of them.
    fn not_found(&self, path: &str) -> String {
        let shown: String = path.chars().take(100).collect();
        let nearest = self
            .entries
            .iter()
            .map(|e| (strsim::jaro_winkler(&shown, &e.pattern), e))
            .filter(|(likeness, _)| *likeness > 0.85)
            .max_by(|(a, _), (b, _)| a.total_cmp(b));
        match nearest {
            Some((_, e)) => {
                format!("there is no {shown}: did you mean {} ({})? GET {LIST} lists all paths", e.pattern, e.allow)
            }
            None => {
                let known: Vec<&str> = self.entries.iter().map(|e| e.pattern.as_str()).take(32).collect();
                format!("there is no {shown}: known are {}", known.join(", "))
            }
        }
    }
}

/// Answers with the list of paths.
struct List(String);

impl Endpoint for List {
    fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        Answer::json(200, self.0.clone().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str);
    impl Endpoint for Named {
        fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
            Answer::text(200, self.0)
        }
    }

    fn named(name: &'static str) -> Arc<dyn Endpoint> {
        Arc::new(Named(name))
    }

    fn routes() -> Routes {
        Routes::new()
            .route("/v1/events", &[("POST", named("post"))])
            .route("/v1/report", &[("GET", named("report"))])
            .route("/v1/events/{id}", &[("GET", named("one")), ("DELETE", named("delete"))])
            .with_list()
    }

    /// What one part of the program adds, and what another adds to it.
    fn merged() -> Routes {
        Routes::new()
            .route("/v2/events", &[("POST", named("post"))])
            .route("/v2/events/{id}", &[("GET", named("one"))])
            .route("/v2/report/{filter}", &[("GET", named("filtered"))])
            .route("/v2/events", &[("GET", named("list"))])
            .route("/v2/events/{id}", &[("POST", named("encoded"))])
            .with_list()
    }

    #[test]
    fn methods_of_one_path_may_come_from_several_places() {
        let routes = merged();
        assert_eq!(ask(&routes, "POST", "/v2/events").1, Ok("post".into()));
        assert_eq!(ask(&routes, "GET", "/v2/events").1, Ok("list".into()));
        assert_eq!(ask(&routes, "HEAD", "/v2/events").1, Ok("list".into()));
        assert_eq!(ask(&routes, "GET", "/v2/events/7"), ("/v2/events/{id}".into(), Ok("one".into())));
        assert_eq!(ask(&routes, "POST", "/v2/events/7").1, Ok("encoded".into()));
        assert_eq!(ask(&routes, "GET", "/v2/report/a%2Fb"), ("/v2/report/{filter}".into(), Ok("filtered".into())));
        assert!(matches!(ask(&routes, "GET", "/v2/report/a/b").1, Err(Fault::NotFound(_))));
        assert_eq!(ask(&routes, "PUT", "/v2/events").1, Err(Fault::MethodNotAllowed("POST, GET, HEAD")));
        let (_, text) = ask(&routes, "GET", "/v1/");
        let list: serde_json::Value = serde_json::from_str(&text.expect("a list")).expect("JSON");
        assert_eq!(list["paths"][0], serde_json::json!({"path": "/v2/events", "methods": ["POST", "GET", "HEAD"]}));
        assert_eq!(list["paths"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    #[should_panic(expected = "GET of /a was added before")]
    fn one_method_has_one_endpoint() {
        let _ = Routes::new().route("/a", &[("GET", named("one"))]).route("/a", &[("GET", named("two"))]);
    }

    #[test]
    #[should_panic(expected = "/a/{b} was added before as /a/{a}")]
    fn one_parameter_has_one_name() {
        let _ = Routes::new().route("/a/{a}", &[("GET", named("one"))]).route("/a/{b}", &[("POST", named("two"))]);
    }

    #[test]
    fn nothing_is_changed_or_removed_by_any_path() {
        for routes in [merged(), Routes::new().route("/a", &[("GET", named("a"))]).with_list()] {
            for entry in &routes.entries {
                let path = entry.pattern.replace("{id}", "7").replace("{filter}", "x");
                for method in ["PUT", "PATCH", "DELETE"] {
                    let found = (entry.pattern.clone(), Err(Fault::MethodNotAllowed(entry.allow)));
                    assert_eq!(ask(&routes, method, &path), found);
                }
            }
        }
    }

    #[test]
    fn the_last_segment_stays_encoded() {
        let segment = crate::exchange::last_segment;
        assert_eq!(segment("/v1/events/a%2Fb%20c"), "a%2Fb%20c");
        assert_eq!(segment("/v1/"), "");
        assert_eq!(segment("*"), "*");
    }

    fn head() -> Head<'static> {
        Head {
            method: "GET",
            path: "/",
            query: None,
            content_type: None,
            content_encoding: None,
            content_length: 0,
            idempotency_key: None,
            request_id: "id",
            peer: ([127, 0, 0, 1], 1).into(),
        }
    }

    fn ask(routes: &Routes, method: &str, path: &str) -> (String, Result<String, Fault>) {
        let (label, found) = routes.find(method, path);
        let head = Head { method, path, ..head() };
        let text = found.map(|e| String::from_utf8_lossy(&e.answer(&head, &mut Vec::new()).body).into_owned());
        (label.to_owned(), text)
    }

    #[test]
    fn finds_exact_paths_and_parameters() {
        let routes = routes();
        assert_eq!(ask(&routes, "POST", "/v1/events"), ("/v1/events".into(), Ok("post".into())));
        assert_eq!(ask(&routes, "GET", "/v1/events/7"), ("/v1/events/{id}".into(), Ok("one".into())));
        assert_eq!(ask(&routes, "HEAD", "/v1/report"), ("/v1/report".into(), Ok("report".into())));
    }

    #[test]
    fn what_is_not_there_is_404_and_says_what_is() {
        let routes = routes();
        for path in ["/", "/v1/events/", "/v1/events/7/8", "/v1/Events", "*", "", "/v1/event%73", "/v1"] {
            let (label, found) = ask(&routes, "GET", path);
            assert_eq!(label, "-");
            let Err(Fault::NotFound(message)) = found else { panic!("{path} was found") };
            assert!(message.contains("/v1/"), "{message}");
        }
        let Err(Fault::NotFound(message)) = ask(&routes, "GET", "/v1/event").1 else { panic!("found") };
        assert!(message.contains("did you mean /v1/events (POST)"), "{message}");
        let Err(Fault::NotFound(message)) = ask(&routes, "GET", &format!("/{}", "é".repeat(9999))).1 else {
            panic!("found")
        };
        assert!(message.len() < 1000);
    }

    #[test]
    fn a_wrong_method_is_405_with_what_is_allowed() {
        let routes = routes();
        assert_eq!(ask(&routes, "GET", "/v1/events").1, Err(Fault::MethodNotAllowed("POST")));
        assert_eq!(ask(&routes, "HEAD", "/v1/events").1, Err(Fault::MethodNotAllowed("POST")));
        assert_eq!(ask(&routes, "POST", "/v1/report").1, Err(Fault::MethodNotAllowed("GET, HEAD")));
        assert_eq!(ask(&routes, "post", "/v1/events").1, Err(Fault::MethodNotAllowed("POST")));
        assert_eq!(ask(&routes, "PUT", "/v1/events/7").1, Err(Fault::MethodNotAllowed("GET, DELETE, HEAD")));
    }

    #[test]
    fn methods_of_one_path_may_come_one_by_one() {
        let routes = routes().route("/v1/report", &[("POST", named("post"))]);
        assert_eq!(ask(&routes, "GET", "/v1/report").1, Ok("report".into()));
        assert_eq!(ask(&routes, "POST", "/v1/report").1, Ok("post".into()));
        assert_eq!(ask(&routes, "PUT", "/v1/report").1, Err(Fault::MethodNotAllowed("GET, POST, HEAD")));
    }

    #[test]
    fn the_list_names_every_path() {
        let (_, text) = ask(&routes(), "GET", "/v1/");
        let list: serde_json::Value = serde_json::from_str(&text.expect("a list")).expect("JSON");
        assert_eq!(list["paths"][0], serde_json::json!({"path": "/v1/events", "methods": ["POST"]}));
        assert_eq!(list["paths"].as_array().map(Vec::len), Some(3));
    }
}

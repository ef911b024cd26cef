//! The paths that the kinds serve, for `--help`.

use std::convert::Infallible;

use crate::kinds::{Endpoints, Kind, KindVisitor, QueryEvents, Report, visit_all};

/// The longest line: help is wrapped at 100 where the terminal's width is not known.
const LINE_CHARS_MAX: usize = 96;

/// Lines for each kind and method.
pub fn of_all_kinds() -> String {
    let mut lines = Lines::default();
    let Ok(()) = visit_all(&mut lines);
    lines.0
}

#[derive(Default)]
struct Lines(String);

impl KindVisitor for Lines {
    type Error = Infallible;

    fn visit<K: Kind>(&mut self) -> Result<(), Infallible> {
        for (method, paths) in Served::by::<K>().by_method() {
            let mut line = format!("  {:<12} {method:<4}", K::NAME);
            for path in paths {
                if line.len() + 1 + path.len() > LINE_CHARS_MAX {
                    let next = " ".repeat(19);
                    self.0 += &std::mem::replace(&mut line, next);
                    self.0.push('\n');
                }
                line += " ";
                line += path;
            }
            self.0 += &line;
            self.0.push('\n');
        }
        Ok(())
    }
}

/// What one kind serves, in its order.
#[derive(Default)]
struct Served {
    posts: Vec<&'static str>,
    gets: Vec<&'static str>,
}

impl Served {
    fn by<K: Kind>() -> Served {
        let mut served = Served::default();
        K::endpoints(&mut served);
        served
    }

    fn by_method(self) -> [(&'static str, Vec<&'static str>); 2] {
        [("POST", self.posts), ("GET", self.gets)]
    }
}

impl<K: Kind> Endpoints<K> for Served {
    fn accept(&mut self, path: &'static str) {
        self.posts.push(path);
    }

    fn accept_segment(&mut self, path: &'static str) {
        self.posts.push(path);
    }

    fn accept_query(&mut self, path: &'static str)
    where
        K: QueryEvents,
    {
        self.posts.push(path);
    }

    fn report<R: Report>(&mut self, path: &'static str) {
        self.gets.push(path);
    }

    fn document(&mut self, path: &'static str, _: fn(&K) -> Vec<u8>) {
        self.gets.push(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Which kind serves a method of a path.
    #[derive(Default)]
    struct Owners(BTreeMap<(&'static str, &'static str), &'static str>);

    impl KindVisitor for Owners {
        type Error = Infallible;

        fn visit<K: Kind>(&mut self) -> Result<(), Infallible> {
            for (method, paths) in Served::by::<K>().by_method() {
                for path in paths {
                    assert!(path.starts_with('/'), "{path} of {} has no slash at its start", K::NAME);
                    let before = self.0.insert((method, path), K::NAME);
                    assert_eq!(before, None, "{method} {path} is served by {} too", K::NAME);
                }
            }
            Ok(())
        }
    }

    #[test]
    fn no_path_is_served_twice() {
        let mut owners = Owners::default();
        let Ok(()) = visit_all(&mut owners);
        assert_eq!(owners.0[&("POST", "/v1/events")], "captcha");
        let listed = of_all_kinds();
        assert!(listed.starts_with("  captcha      POST /v1/events /v1/event "), "{listed}");
        assert!(listed.lines().all(|line| line.len() <= LINE_CHARS_MAX), "{listed}");
    }
}

//! The types of interactions that are known: their schemas, out of a folder or built in, as one set that never changes.
//!
//! A type `category.name` is a file `CATEGORY.NAME.json`. A category has no dot, so a name's first dot parts the two
//! whatever follows. Files whose names begin with a dot or do not end in `.json` are passed over. A set is good as a whole
//! or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use super::document;
use super::parse::text_fault;
use super::schema::Schema;
use crate::kinds::{Rejection, excerpt};

/// The schemas that are built in, by file name.
const BUILT_IN: [(&str, &str); 3] = [
    ("form_interaction.submit.json", include_str!("../../../schemas/interaction/form_interaction.submit.json")),
    ("page_interaction.cta_click.json", include_str!("../../../schemas/interaction/page_interaction.cta_click.json")),
    ("page_interaction.pageview.json", include_str!("../../../schemas/interaction/page_interaction.pageview.json")),
];

/// Types of one set, at most.
const TYPES_MAX: usize = 10_000;

/// Bytes of one file, at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The stack on which schemas are compiled: 16 KiB for each of the objects and arrays that one may have, which refer to
/// each other as they like.
const COMPILE_STACK_BYTES: usize = 64 << 20;

/// Types that an unknown one is compared with, at most: each takes about 0.3 us, for every event that is rejected.
const COMPARED_MAX: usize = 64;

/// Types that a message names, at most.
const NAMED_MAX: usize = 5;

/// How alike (Jaro and Winkler) a near type is at least.
const LIKENESS_MIN: f64 = 0.8;

/// What interactions are checked against.
#[derive(Debug)]
pub struct Types {
    /// By category, then by name.
    schemas: HashMap<String, HashMap<String, Schema>>,
    /// All types, sorted.
    names: Vec<String>,
    accept_unknown: bool,
    /// How far in the future an event's time may lie, in microseconds.
    pub future_us_max: i64,
    document: Vec<u8>,
    source: String,
}

impl Types {
    /// Reads and compiles the schemas of a folder, or those that are built in. The error names the file, and the place in
    /// it where there is one.
    pub fn load(folder: Option<&Path>, accept_unknown: bool, future_us_max: i64) -> Result<Types, String> {
        let files = match folder {
            Some(folder) => read_folder(folder)?,
            None => BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
        };
        let source = folder.map_or_else(|| "built in".to_owned(), |folder| folder.display().to_string());
        if files.is_empty() && !accept_unknown {
            return Err(format!("{source} holds no CATEGORY.NAME.json, so that every event would be rejected"));
        }
        let compiled = on_large_stack(|| {
            files
                .into_iter()
                .map(|(file, text)| compile(&file, &text).map_err(|error| format!("{file}: {error}")))
                .collect()
        });
        let schemas: BTreeMap<String, Schema> = compiled?;
        no_id_twice(&schemas)?;
        let document = document::write(&schemas, accept_unknown);
        let names = schemas.keys().cloned().collect();
        let mut by_category: HashMap<String, HashMap<String, Schema>> = HashMap::new();
        for (full, schema) in schemas {
            if let Some((category, name)) = full.split_once('.') {
                by_category.entry(category.to_owned()).or_default().insert(name.to_owned(), schema);
            }
        }
        Ok(Types { schemas: by_category, names, accept_unknown, future_us_max, document, source })
    }

    /// The schema of a type; `None` for one that is taken unchecked.
    #[inline]
    pub fn find(&self, category: &str, name: &str) -> Result<Option<&Schema>, Rejection> {
        match self.schemas.get(category).and_then(|names| names.get(name)) {
            Some(schema) => Ok(Some(schema)),
            None if self.accept_unknown => Ok(None),
            None => Err(self.unknown(category, name)),
        }
    }

    /// The JSON Schema of an event, with those of all types in it.
    pub fn document(&self) -> &[u8] {
        &self.document
    }

    /// What is in force, for the log.
    pub fn summary(&self) -> String {
        let shown = self.names.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if self.names.len() > 20 { ", ..." } else { "" };
        format!("{} types ({}): {shown}{more}", self.names.len(), self.source)
    }

    #[cold]
    fn unknown(&self, category: &str, name: &str) -> Rejection {
        let full = format!("{category}.{name}");
        // Where there are many, those that would stand beside it: they begin alike.
        let at = self.names.partition_point(|known| *known < full);
        let start = at.saturating_sub(COMPARED_MAX / 2).min(self.names.len().saturating_sub(COMPARED_MAX));
        let compared = &self.names[start..self.names.len().min(start + COMPARED_MAX)];
        let mut near: Vec<(f64, &str)> = compared
            .iter()
            .map(|known| (strsim::jaro_winkler(&full, known), known.as_str()))
            .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        let named = near.iter().take(NAMED_MAX).map(|(_, known)| *known).collect::<Vec<_>>().join(", ");
        let hint = if named.is_empty() { "GET /v2/schema lists them".to_owned() } else { format!("near are {named}") };
        let message = format!("expected a known type, found {}: {hint}", excerpt::quote(&full));
        Rejection { code: "unknown_type", field: Some("name".into()), message: message.into() }
    }
}

fn read_folder(folder: &Path) -> Result<Vec<(String, String)>, String> {
    let unreadable = |error| format!("{} cannot be read: {error}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || !name.ends_with(".json") {
            continue;
        }
        if files.len() == TYPES_MAX {
            return Err(format!("{} holds more than {TYPES_MAX} schemas", folder.display()));
        }
        let bytes = fs::metadata(&path).map_err(|error| format!("{name} cannot be read: {error}"))?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(format!("{name} has {bytes} bytes, {FILE_BYTES_MAX} are allowed"));
        }
        let text = fs::read_to_string(&path).map_err(|error| format!("{name} cannot be read: {error}"))?;
        files.push((name, text));
    }
    files.sort();
    Ok(files)
}

/// A type and its schema, out of its file.
fn compile(file: &str, text: &str) -> Result<(String, Schema), String> {
    let full = file.strip_suffix(".json").unwrap_or(file);
    let Some((category, name)) = full.split_once('.') else {
        return Err("expected a file name of the form CATEGORY.NAME.json".to_owned());
    };
    for (field, half) in [("category", category), ("name", name)] {
        if let Some(fault) = text_fault(field, half) {
            return Err(format!("the {field} {} cannot be: {fault}", excerpt::quote(half)));
        }
    }
    let text = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    Ok((full.to_owned(), Schema::compile(full.to_owned(), text)?))
}

fn no_id_twice(schemas: &BTreeMap<String, Schema>) -> Result<(), String> {
    let mut known = BTreeSet::new();
    for (name, schema) in schemas {
        if let Some(id) = schema.text().get("$id").and_then(|id| id.as_str())
            && !known.insert(id)
        {
            return Err(format!("{name}.json: another file has the same $id {}", excerpt::quote(id)));
        }
    }
    Ok(())
}

fn on_large_stack<R: Send>(work: impl FnOnce() -> Result<R, String> + Send) -> Result<R, String> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("schemas".to_owned()).stack_size(COMPILE_STACK_BYTES);
        let thread =
            builder.spawn_scoped(scope, work).map_err(|error| format!("no thread to compile them: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("a schema on which the validator's compiler fails".to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str, files: &[(&str, &str)]) -> Folder {
            let folder = std::env::temp_dir().join(format!("millrace-types-{}-{test}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
            Folder(folder)
        }

        fn load(&self) -> Result<Types, String> {
            Types::load(Some(&self.0), false, 0)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_built_in_types_are_those_of_the_folder() {
        let built_in = Types::load(None, false, 0).unwrap();
        let shipped = Types::load(Some(Path::new("schemas/interaction")), false, 0).unwrap();
        assert_eq!(built_in.names, shipped.names);
        assert_eq!(built_in.document, shipped.document);
        assert_eq!(
            built_in.summary(),
            "3 types (built in): form_interaction.submit, page_interaction.cta_click, page_interaction.pageview"
        );
        assert!(built_in.find("page_interaction", "pageview").unwrap().is_some());
    }

    #[test]
    fn a_names_first_dot_ends_the_category() {
        let folder =
            Folder::new("dots", &[("a.b.c.json", "{}"), (".a.json", "x"), ("a.b.json~", "x"), ("README", "x")]);
        let types = folder.load().unwrap();
        assert!(types.find("a", "b.c").unwrap().is_some());
        assert!(types.find("a.b", "c").is_err());
        assert_eq!(types.names, ["a.b.c"]);
    }

    #[test]
    fn a_broken_file_is_named_with_the_place_in_it() {
        for (name, text, expected) in [
            ("a.b.json", "{", "a.b.json: not JSON: EOF while parsing an object at line 1 column 1"),
            ("a.b.json", "{\n\"type\": 7}", "a.b.json: at /type: "),
            ("a.b.json", "", "a.b.json: not JSON: "),
            ("a.json", "{}", "a.json: expected a file name of the form CATEGORY.NAME.json"),
            ("a..json", "{}", "a..json: the name \"\" cannot be: it is empty"),
        ] {
            let folder = Folder::new("broken", &[("good.one.json", "{}"), (name, text)]);
            let error = folder.load().expect_err(name);
            assert!(error.starts_with(expected), "{error}");
        }
        let same = r#"{"$id": "urn:x"}"#;
        let error = Folder::new("ids", &[("a.a.json", same), ("a.b.json", same)]).load().unwrap_err();
        assert_eq!(error, "a.b.json: another file has the same $id \"urn:x\"");
        assert!(Folder::new("none", &[]).load().unwrap_err().contains("holds no CATEGORY.NAME.json"));
        assert!(Types::load(Some(Path::new("/no/such/folder")), false, 0).unwrap_err().starts_with("/no/such/folder "));
    }

    #[test]
    fn an_unknown_type_is_told_what_is_near() {
        let types = Types::load(None, false, 0).unwrap();
        let blame = |category, name| {
            let rejection = types.find(category, name).map(|_| ()).unwrap_err();
            assert_eq!((rejection.code, rejection.field.as_deref()), ("unknown_type", Some("name")));
            rejection.message.into_owned()
        };
        let message = blame("page_interaction", "pagevew");
        assert!(
            message.contains("found \"page_interaction.pagevew\": near are page_interaction.pageview"),
            "{message}"
        );
        assert!(blame("x", "y").ends_with("found \"x.y\": GET /v2/schema lists them"));
        let accepting = Types::load(None, true, 0).unwrap();
        assert!(accepting.find("x", "y").unwrap().is_none());
        assert!(accepting.find("page_interaction", "pageview").unwrap().is_some());
        // Among very many it is still found, and few are compared.
        let names: Vec<String> = (0..3000).map(|n| format!("page.view{n:04}.json")).collect();
        let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "{}")).collect();
        let many = Folder::new("many", &files).load().unwrap();
        let message = many.find("page", "view1500x").map(|_| ()).unwrap_err().message;
        assert!(message.contains("near are page.view1500, "), "{message}");
    }

    #[test]
    fn the_document_is_a_schema_of_events() {
        let own_ref = r##"{"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}"##;
        let files = [
            ("a.self.json", own_ref),
            ("a.id.json", r#"{"$id": "http://x/y"}"#),
            ("a.no.json", "false"),
            ("b.ü~1.json", "false"),
        ];
        let types = Folder::new("document", &files).load().unwrap();
        let document: serde_json::Value = serde_json::from_slice(types.document()).unwrap();
        let validator = jsonschema::options().offline().build(&document).unwrap();
        let event = |category: &str, name: &str, data: serde_json::Value| {
            validator.is_valid(&serde_json::json!({
                "session_id": "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
                "category": category, "name": name, "data": data, "timestamp": "2021-01-25T18:20:42.5+01:00",
            }))
        };
        assert!(event("a", "self", serde_json::json!({"x": 5})));
        assert!(!event("a", "self", serde_json::json!({"x": "5"})));
        assert!(event("a", "id", serde_json::json!({})));
        assert!(!event("a", "id", serde_json::json!([])));
        assert!(!event("a", "no", serde_json::json!({})));
        assert!(!event("b", "ü~1", serde_json::json!({})));
        assert!(!event("a", "none", serde_json::json!({})));
        assert!(!event("c", "self", serde_json::json!({})));
    }
}

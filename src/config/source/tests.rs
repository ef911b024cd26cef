//! What files, variables and flags do together, and what is said of mistakes in them.

use super::*;

fn write(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("millrace-config-{}-{name}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

fn of_file(name: &str, text: &str) -> Result<Loaded, String> {
    let path = write(name, text);
    let loaded = load(&Sources { file: Some(path.clone()), ..Sources::default() });
    std::fs::remove_file(&path).unwrap();
    loaded.map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
}

fn of_variables(variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    load(&Sources { variables, ..Sources::default() }).map_err(|error| error.to_string())
}

fn of_flag(key: &str, value: &str) -> Result<Loaded, String> {
    let flags = vec![("--set".to_owned(), key.to_owned(), value.to_owned())];
    load(&Sources { flags, ..Sources::default() }).map_err(|error| error.to_string())
}

#[test]
fn nothing_set_is_the_default() {
    let loaded = load(&Sources::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.origin("http.listen"), Origin::Default);
}

#[test]
fn flags_beat_variables_beat_the_file() {
    let file = write("precedence", "[http]\nlisten = '127.0.0.1:1'\nworkers = 3\n[writer]\nrange_age_ms = 250\n");
    let loaded = load(&Sources {
        file: Some(file.clone()),
        variables: vec![
            ("MILLRACE_HTTP_LISTEN".into(), "127.0.0.1:2".into()),
            ("MILLRACE_HTTP_WORKERS".into(), "4".into()),
            ("MILLRACE_CONFIG".into(), "ignored here".into()),
            ("PATH".into(), "/bin".into()),
        ],
        flags: vec![("--http-listen".into(), "http.listen".into(), "127.0.0.1:3".into())],
    })
    .unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(loaded.config.http.listen.port(), 3);
    assert_eq!(loaded.config.http.workers, 4);
    assert_eq!(loaded.config.writer.range_age_ms, 250);
    assert_eq!(loaded.origin("http.listen"), Origin::Flag("--http-listen".into()));
    assert_eq!(loaded.origin("http.workers"), Origin::Variable("MILLRACE_HTTP_WORKERS".into()));
    assert_eq!(loaded.origin("writer.range_age_ms"), Origin::File(file, 5));
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    assert_eq!(
        of_file("unknown", "[http]\nlisten = '127.0.0.1:1'\nlissten = 2\n").unwrap_err(),
        "FILE:3: http.lissten: no such setting: the nearest known name is http.listen"
    );
    assert_eq!(
        of_file("section", "[htpp]\nlisten = '127.0.0.1:1'\n").unwrap_err(),
        "FILE:2: htpp.listen: no such setting: the nearest known name is http.listen"
    );
    assert_eq!(
        of_file("moved", "\n[writer]\nlinger_ms = 1\n").unwrap_err(),
        "FILE:3: writer.linger_ms: no such setting: the nearest known name is kafka.linger_ms"
    );
    assert_eq!(
        of_file("empty", "[writers]\n").unwrap_err(),
        format!(
            "FILE:1: writers: no such setting: the nearest known name is {}",
            nearest("writers", SETTINGS.iter().map(|setting| setting.key)).unwrap()
        )
    );
    assert_eq!(
        of_variables(&[("MILLRACE_HTTP_LISTN", "x")]).unwrap_err(),
        "MILLRACE_HTTP_LISTN: no such setting: the nearest known variable is MILLRACE_HTTP_LISTEN"
    );
    assert_eq!(
        of_flag("clickhouse.databse", "x").unwrap_err(),
        "--set: clickhouse.databse: no such setting: the nearest known name is clickhouse.database"
    );
    assert!(of_flag("kafka.options.sasl.usernam", "x").unwrap_err().contains("\"sasl.username\""));
}

#[test]
fn a_section_may_be_empty() {
    let sections = SETTINGS.iter().filter_map(|setting| setting.key.split_once('.')).map(|(section, _)| section);
    for section in sections.chain(["kafka.options"]) {
        assert!(of_file("none", &format!("[{section}]\n")).is_ok(), "{section}");
    }
}

#[test]
fn wrong_values_say_what_is_allowed() {
    assert_eq!(
        of_file("unit", "[http]\nbody_bytes_max = \"32MiB\"\n").unwrap_err(),
        "FILE:2: http.body_bytes_max: expected a whole number of bytes from 1024 to 1073741824, found \"32MiB\" (that is 33554432 bytes)"
    );
    assert_eq!(
        of_file("range", "[kafka]\nlinger_ms = 6\n").unwrap_err(),
        "FILE:2: kafka.linger_ms: expected a whole number of ms from 0 to 5, found 6"
    );
    assert_eq!(
        of_variables(&[("MILLRACE_KAFKA_COMPRESSION", "zip")]).unwrap_err(),
        "MILLRACE_KAFKA_COMPRESSION: kafka.compression: expected one of \"none\", \"lz4\", \"snappy\", \"gzip\", found \"zip\""
    );
    assert!(of_file("table", "[http.listen]\na = 1\n").unwrap_err().contains("http.listen.a: no such setting"));
    assert!(of_file("float", "[http]\nworkers = 1.5\n").unwrap_err().contains("found a TOML float"));
    assert!(of_file("large", "[http]\nworkers = 99999999999999999999\n").is_err());
    // Several mistakes are told at once.
    assert_eq!(of_file("two", "[http]\nworkers = -1\nlisten = 7\n").unwrap_err().lines().count(), 2);
}

#[test]
fn broken_toml_names_its_line() {
    let error = of_file("broken", "[http]\nlisten = '127.0.0.1:1'\nworkers = = 3\n").unwrap_err();
    assert!(error.starts_with("FILE:3: this is not TOML: "), "{error}");
    let error = of_file("twice", "[http]\nworkers = 3\nworkers = 4\n").unwrap_err();
    assert!(error.starts_with("FILE:3: "), "{error}");
}

#[test]
fn relations_name_both_settings_and_their_sources() {
    let error = of_variables(&[("MILLRACE_KAFKA_DELIVERY_MS_MAX", "9800")]).unwrap_err();
    let first = error.lines().next().unwrap();
    assert!(first.starts_with(
        "http.ack_ms_max is 10000 (default), kafka.delivery_ms_max is 9800 (MILLRACE_KAFKA_DELIVERY_MS_MAX)"
    ));
    assert!(first.contains("10302 ms or more"), "{first}");
}

#[test]
fn options_of_kafka_pass_through() {
    let loaded = of_file(
        "options",
        "[kafka.options]\n\"client.id\" = \"a\"\nsecurity.protocol = \"ssl\"\nfetch.min.bytes = 7\nsocket.keepalive.enable = true\n",
    )
    .unwrap();
    let options: Vec<_> = loaded.config.kafka.options.iter().collect();
    let expected = [
        ("client.id", "a"),
        ("fetch.min.bytes", "7"),
        ("security.protocol", "ssl"),
        ("socket.keepalive.enable", "true"),
    ];
    assert_eq!(options, expected);
    let loaded = of_variables(&[("MILLRACE_KAFKA_OPTIONS_SASL_PASSWORD", "hunter2")]).unwrap();
    assert_eq!(loaded.config.kafka.options.iter().next(), Some(("sasl.password", "hunter2")));
    assert!(!super::super::show(&loaded).contains("hunter2"));
    assert!(of_flag("kafka.options.acks", "1").unwrap_err().contains("cannot be changed"));
}

#[test]
fn secrets_are_not_shown() {
    let loaded = of_variables(&[("MILLRACE_CLICKHOUSE_PASSWORD", "hunter2")]).unwrap();
    assert_eq!(loaded.config.clickhouse.password.expose(), "hunter2");
    assert!(!format!("{loaded:?}").contains("hunter2"));
    assert!(super::super::show(&loaded).contains("\n#password = \"[secret]\"  # MILLRACE_CLICKHOUSE_PASSWORD\n"));
    let refused = of_flag("clickhouse.password", "hunter2").unwrap_err();
    assert!(refused.contains("MILLRACE_CLICKHOUSE_PASSWORD") && !refused.contains("hunter2"), "{refused}");
    let refused = of_flag("clickhouse.url", "http://u:hunter2@h:1").unwrap_err();
    assert!(!refused.contains("hunter2"), "{refused}");
    let refused = of_file("secret", "[clickhouse]\npassword = 12345678\n").unwrap_err();
    assert!(!refused.contains("12345678"), "{refused}");
}

#[test]
fn a_password_file() {
    let secret = write("secret-file", "hunter2\r\n");
    let path = secret.display().to_string();
    let loaded = of_flag("clickhouse.password_file", &path).unwrap();
    assert_eq!(loaded.config.clickhouse.password.expose(), "hunter2");
    let both = [("MILLRACE_CLICKHOUSE_PASSWORD", "x"), ("MILLRACE_CLICKHOUSE_PASSWORD_FILE", path.as_str())];
    assert!(of_variables(&both).unwrap_err().contains("are both set"));
    let stronger = load(&Sources {
        file: Some(write("weaker", &format!("[clickhouse]\npassword_file = {path:?}\n"))),
        variables: vec![("MILLRACE_CLICKHOUSE_PASSWORD".into(), "x".into())],
        flags: vec![],
    });
    assert_eq!(stronger.unwrap().config.clickhouse.password.expose(), "x");
    std::fs::remove_file(&secret).unwrap();
    assert!(of_flag("clickhouse.password_file", &path).unwrap_err().contains("cannot read"));
}

#[test]
fn a_missing_file_is_named() {
    let error = load(&Sources { file: Some("/nonexistent/millrace.toml".into()), ..Sources::default() }).unwrap_err();
    assert!(error.to_string().starts_with("cannot read the file /nonexistent/millrace.toml"));
}

#[test]
fn what_is_shown_reads_back() {
    let variables = [
        ("MILLRACE_CLICKHOUSE_PASSWORD", "hunter2"),
        ("MILLRACE_KAFKA_OPTIONS_SASL_PASSWORD", "hunter2"),
        ("MILLRACE_KAFKA_OPTIONS_CLIENT_ID", "it's \\ \"me\""),
        ("MILLRACE_HTTP_WORKERS", "3"),
    ];
    for variables in [&variables[..], &[]] {
        let loaded = of_variables(variables).unwrap();
        let mut again = of_file("shown", &super::super::show(&loaded)).unwrap();
        again.config.clickhouse.password = loaded.config.clickhouse.password.clone();
        if !variables.is_empty() {
            again.config.kafka.options.set("sasl.password", &Raw::Text("hunter2".into())).unwrap();
        }
        assert_eq!(again.config, loaded.config);
    }
}

#[test]
fn the_example_equals_the_defaults_and_names_every_setting() {
    let text = include_str!("../../../millrace.toml");
    let loaded = of_file("example", text).unwrap();
    assert_eq!(loaded.config, Config::default());
    let mut section = String::new();
    let mut named = Vec::new();
    for line in text.lines().map(|line| line.strip_prefix('#').unwrap_or(line)) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((name, value)) = line.split_once(" = ") {
            named.push((format!("{section}.{name}"), value.to_owned()));
        }
    }
    let shown = super::super::show(&Loaded::default());
    for setting in SETTINGS {
        let found = named.iter().find(|(key, _)| key == setting.key);
        let (_, value) = found.unwrap_or_else(|| panic!("{} is missing in millrace.toml", setting.key));
        let (_, name) = setting.key.split_once('.').unwrap();
        // Optional settings may show an example instead of their empty default.
        let optional = (setting.show)(&Config::default()) == "\"\"";
        assert!(optional || shown.contains(&format!("{name} = {value}\n")), "{} differs in millrace.toml", setting.key);
    }
}

//! Files as sources: what cells and fields become, going on after an id, and lines that cannot be read.
//!
//! Through `Source`, as the import reads them. Invariant: each test has a folder of its own.

use std::{path::Path, time::Duration};

use super::super::{
    Row, Source, SourceError,
    tests::{all, ask},
};
use crate::{
    config::SourceUrl,
    import::mapping::{Field, Kind},
};

async fn open(kind: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, Source) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("keys");
    std::fs::write(&path, content).expect("a file");
    (directory, open_path(kind, &path).await.expect("open"))
}

async fn open_path(kind: &str, path: &Path) -> Result<Source, SourceError> {
    let url = SourceUrl::parse(&format!("{kind}:{}", path.display())).expect("a url");
    Source::open(&url, Duration::from_secs(30)).await
}

fn refusal(result: Result<Vec<Row>, SourceError>) -> String {
    match result {
        Err(SourceError::Refused(words)) => words,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn cells_of_csv_come_as_they_are_and_empty_ones_as_null() {
    let content = b"\xef\xbb\xbfid, key ,note\r\n7,\"a \"\"b\"\"\",\r\n8,\"two\r\nlines\",x\xff\r\n9,abcdef,z\r\n";
    let (_directory, mut source) = open("csv", content).await;
    let by_id = ask("", "id", &[("key", 12), ("note", 2)]);
    source.check(&by_id).await.expect("good");
    assert_eq!(source.count(&by_id).await, Ok(Some(3)));
    let rows = all(&mut source, &by_id, 2).await;
    let row =
        |id: &str, key: &str, note: Option<&str>| (id.to_owned(), vec![Some(key.to_owned()), note.map(str::to_owned)]);
    let expected =
        [row("7", "a \"b\"", None), row("8", "two\r\nlines", Some("\0x\u{fffd}")), row("9", "abcdef", Some("z"))];
    assert_eq!(rows, expected);

    let by_line = ask("", "", &[("key", 3)]);
    let rows = all(&mut source, &by_line, 10).await;
    let lines: Vec<&str> = rows.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(lines, ["2", "3", "5"]);
    assert_eq!(rows[2].1, [Some("abcd".to_owned())]);
}

#[tokio::test]
async fn fields_of_json_come_as_text() {
    let content = "\u{feff}{\"id\": 1, \"k\": \"a\\u0000b\", \"o\": {\"x\": [1]}, \"n\": null}\r\n\n\
                   {\"id\": \"two\", \"k\": true, \"n\": 1.5}";
    let (_directory, mut source) = open("jsonl", content).await;
    let by_id = ask("", "id", &[("k", 9), ("o", 9), ("n", 9)]);
    source.check(&by_id).await.expect("good");
    assert_eq!(source.count(&by_id).await, Ok(Some(2)));
    let rows = all(&mut source, &by_id, 1).await;
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(rows[0], ("1".to_owned(), vec![text("a\0b"), text("{\"x\":[1]}"), None]));
    assert_eq!(rows[1], ("two".to_owned(), vec![text("true"), None, text("1.5")]));
    let rows = all(&mut source, &ask("", "", &[]), 1).await;
    assert_eq!(rows.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["1", "3"]);
}

#[tokio::test]
async fn a_number_that_json_rounds_is_no_text_and_no_id() {
    let content = "{\"id\": 18446744073709551615, \"k\": 123456789012345678901234, \"n\": 0.5}\n\
                   {\"id\": -1, \"k\": 18446744073709551615, \"n\": 1e2}\n\
                   {\"id\": 3, \"k\": 0.12345678901234567890, \"n\": 2}\n";
    let (_directory, mut source) = open("jsonl", content).await;
    let rows = all(&mut source, &ask("", "id", &[("k", 600), ("n", 64)]), 10).await;
    let values = |at: usize| rows[at].1.iter().map(|value| value.clone().unwrap_or_default()).collect::<Vec<_>>();
    assert!(values(0)[0].starts_with('\0') && values(2)[0].starts_with('\0'), "{rows:?}");
    assert_eq!((rows[0].0.as_str(), values(0)[1].as_str()), ("18446744073709551615", "0.5"));
    assert_eq!((values(1)[0].as_str(), values(1)[1].as_str()), ("18446744073709551615", "100.0"));

    for id in ["18446744073709551616", "1.5", "1e3"] {
        let (_directory, mut source) = open("jsonl", format!("{{\"id\": {id}, \"k\": 1}}\n")).await;
        let words = refusal(source.read(&ask("", "id", &[("k", 600)]), None, 1).await);
        assert!(words.starts_with("line 1: its id is a number"), "{words}");
    }
}

/// By that it is known which columns may have numbers with a fraction.
#[test]
fn less_is_asked_for_of_numbers_than_of_keys_and_ids() {
    for field in Field::ALL {
        let (kind, is_short) = (field.kind(), field.length_max() <= 64);
        assert!(is_short || kind != Kind::Number, "{field:?}");
        assert!(!is_short || ![Kind::Material, Kind::Reference, Kind::Text].contains(&kind), "{field:?}");
    }
}

#[tokio::test]
async fn who_goes_on_after_an_id_gets_the_rows_behind_it() {
    for (kind, content) in [
        ("csv", "id,k\na,1\nb,2\nc,3\n"),
        ("jsonl", "{\"id\":\"a\",\"k\":1}\n{\"id\":\"b\",\"k\":2}\n{\"id\":\"c\",\"k\":3}\n"),
    ] {
        let (_directory, mut source) = open(kind, content).await;
        let ask = ask("", "id", &[("k", 1)]);
        for (after, expected) in [(Some("b"), vec!["c"]), (None, vec!["a", "b"]), (Some("b"), vec!["c"])] {
            let rows = source.read(&ask, after, 2).await.expect("rows");
            assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), expected, "{kind}");
        }
        assert!(source.read(&ask, Some("c"), 2).await.expect("the end").is_empty());
        assert!(refusal(source.read(&ask, Some("x"), 2).await).contains("\"x\""));
    }
}

#[tokio::test]
async fn lines_that_cannot_be_read_are_named_and_not_shown() {
    let (_directory, mut source) = open("csv", "id,k\r\na,1\r\nhunter2\r\nb,2,3\r\na,4\r\n,5\r\n").await;
    let by_id = ask("", "id", &[("k", 1)]);
    let Err(SourceError::Refused(words)) = source.check(&by_id).await else { panic!("a refusal") };
    for line in ["line 3: 1 cells", "line 4: 3 cells", "line 5: its id stands", "line 6: no id"] {
        assert!(words.contains(line), "{words}");
    }
    assert!(!words.contains("hunter2"), "{words}");
    assert!(refusal(source.read(&by_id, None, 10).await).starts_with("line 3: "));

    let (_directory, mut source) = open("jsonl", "{\"id\":1}\n[\"hunter2\"]\n{\"id\":1,\"k\":\"hunter2\n").await;
    let Err(SourceError::Refused(words)) = source.check(&by_id).await else { panic!("a refusal") };
    assert!(words.contains("line 2: ") && words.contains("line 3: ") && !words.contains("hunter2"), "{words}");
}

#[tokio::test]
async fn columns_that_are_not_there_are_told_before_anything_is_read() {
    let wrong = ask("", "ID", &[("k", 1), ("x", 1)]);
    for (kind, content, problems) in [
        ("csv", "id,k\na,1\n", vec!["no column \"ID\" (did you mean \"id\"?)", "no column \"x\""]),
        ("jsonl", "{\"ID\":1,\"k\":2}\n", vec!["a field \"x\""]),
    ] {
        let (_directory, mut source) = open(kind, content).await;
        let Err(SourceError::Mapping(words)) = source.check(&wrong).await else { panic!("a problem of {kind}") };
        assert_eq!(words.lines().count(), problems.len(), "{words}");
        for problem in problems {
            assert!(words.contains(problem), "{words}");
        }
    }
    let (_directory, mut source) = open("csv", "").await;
    assert!(refusal(source.read(&wrong, None, 1).await).contains("no header line"));
    let (_directory, mut source) = open("csv", "id,k\ra,1\rb,2\r").await;
    assert!(refusal(source.read(&wrong, None, 1).await).contains("carriage return"));
}

#[tokio::test]
async fn a_row_without_an_end_is_bounded() {
    let mut content = b"id,k\na,\"".to_vec();
    content.resize(17 << 20, b'x');
    let (_directory, mut source) = open("csv", &content).await;
    let by_id = ask("", "id", &[("k", 1)]);
    assert!(refusal(source.read(&by_id, None, 1).await).starts_with("line 2: a row of more than"));
    let (_directory, mut source) = open("jsonl", &content).await;
    assert!(refusal(source.read(&by_id, None, 2).await).starts_with("line 1: "));
}

#[tokio::test]
async fn a_file_that_is_not_there_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let opened = open_path("csv", &directory.path().join("missing")).await.err();
    assert!(matches!(opened, Some(SourceError::Unreachable(_))), "{opened:?}");
}

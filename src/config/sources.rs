//! Where a setting's value comes from: flag over variable over file over default.
//!
//! Reads the configuration file and the variables (through a look-up that is passed in, so that tests never touch
//! the process's own), and collects problems. Knows no setting by name. Invariant: every problem names the flag,
//! variable or line that it comes from, and none shows the value of a secret or a line of the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::settings::{Setting, variable_of};

/// Longest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A look-up of environment variables by name.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// One line per problem, each naming its source.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the configuration is not usable")?;
        for problem in &self.problems {
            write!(formatter, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The value is unusable and the problem is on the list already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reported;

/// Which source won.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    Variable,
    File,
    Default,
}

/// An entry of the file: its text (or why it has none) and its line.
struct Entry {
    text: Result<String, &'static str>,
    line: usize,
}

/// All sources of one run, and the problems found so far.
pub(super) struct Sources<'a> {
    flags: &'a BTreeMap<&'static str, String>,
    environment: Environment<'a>,
    file: Option<PathBuf>,
    entries: BTreeMap<String, Entry>,
    problems: Vec<String>,
}

impl<'a> Sources<'a> {
    /// Reads the file, if one is named, and notes every name in it that `sections` does not declare.
    pub(super) fn new(
        flags: &'a BTreeMap<&'static str, String>,
        config_flag: Option<&Path>,
        environment: Environment<'a>,
        sections: &[&[Setting]],
    ) -> Self {
        let mut sources = Self { flags, environment, file: None, entries: BTreeMap::new(), problems: Vec::new() };
        let file = config_flag
            .map(Path::to_path_buf)
            .or_else(|| environment(&variable_of("config")).filter(|value| !value.is_empty()).map(PathBuf::from));
        if let Some(file) = file {
            match read_file(&file) {
                Ok(text) => sources.take_file(&file, &text, sections),
                Err(reason) => sources.problems.push(format!("file {}: {reason}", file.display())),
            }
            sources.file = Some(file);
        }
        sources
    }

    fn take_file(&mut self, file: &Path, text: &str, sections: &[&[Setting]]) {
        let shown = file.display();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            self.problems.push(format!("file {shown}, line {line}: not TOML: {}", error.message().replace('\n', ", ")));
        }
        for (name, value) in table.get_ref() {
            let line = line_of(text, name.span().start);
            let known = sections.iter().copied().flatten().any(|setting| setting.name == name.get_ref());
            if known {
                let entry = Entry { text: text_of(value.get_ref()), line };
                self.entries.insert(name.get_ref().to_string(), entry);
            } else {
                let hint = suggestion(name.get_ref(), sections);
                self.problems.push(format!("file {shown}, line {line}: unknown name {:?}{hint}", name.get_ref()));
            }
        }
    }

    /// A value that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Reported> {
        let Some((origin, text)) = self.find(setting) else {
            return Ok(None);
        };
        let parsed = match &text {
            Ok(text) => parse(text).map(Some),
            Err(reason) => Err((*reason).to_owned()),
        };
        parsed.map_err(|reason| {
            // Where there is an `@` there may be a password before it, whatever the setting is meant for.
            let shown = match &text {
                Ok(text) if !setting.secret && !text.contains('@') => format!("{text:?} is "),
                Ok(_) | Err(_) => String::new(),
            };
            self.problem(setting, origin, &format!("{shown}{reason}"))
        })
    }

    /// A value that has a default.
    pub(super) fn required<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Reported> {
        match self.optional(setting, parse) {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(self.problem(setting, Origin::Default, "is needed")),
            Err(reported) => Err(reported),
        }
    }

    /// Where the value of a setting comes from; `None` where no source has one.
    pub(super) fn origin(&self, setting: &Setting) -> Option<Origin> {
        self.find(setting).map(|(origin, _)| origin)
    }

    /// A variable that is no setting and has neither a flag nor an entry in the file. Empty means absent.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }

    /// Notes a problem with a setting whose value comes from `origin`.
    pub(super) fn problem(&mut self, setting: &Setting, origin: Origin, text: &str) -> Reported {
        let place = match origin {
            Origin::Flag => format!("flag --{}", setting.name),
            Origin::Variable => format!("variable {}", setting.variable()),
            Origin::File => {
                let line = self.entries.get(setting.name).map_or(0, |entry| entry.line);
                let file = self.file.as_deref().unwrap_or(Path::new(""));
                format!("file {}, line {line}, {}", file.display(), setting.name)
            }
            Origin::Default => format!("setting {}", setting.name),
        };
        self.note(format!("{place}: {text}"))
    }

    /// Notes a problem that belongs to no single setting.
    pub(super) fn note(&mut self, problem: String) -> Reported {
        self.problems.push(problem);
        Reported
    }

    /// The result of `build`, unless anything at all was wrong.
    pub(super) fn finish<T>(self, build: impl FnOnce() -> Result<T, Reported>) -> Result<T, ConfigError> {
        let problems = self.problems;
        match build() {
            Ok(whole) if problems.is_empty() => Ok(whole),
            Ok(_) | Err(Reported) => Err(ConfigError { problems }),
        }
    }

    fn find(&self, setting: &Setting) -> Option<(Origin, Result<String, &'static str>)> {
        if let Some(value) = self.flags.get(setting.name) {
            return Some((Origin::Flag, Ok(value.clone())));
        }
        // An empty variable is an absent one: compose files and unit files pass `X=` for "not set".
        if let Some(value) = self.variable(&setting.variable()) {
            let text = value.into_string().map_err(|_| "not UTF-8 text");
            return Some((Origin::Variable, text));
        }
        if let Some(entry) = self.entries.get(setting.name) {
            return Some((Origin::File, entry.text.clone()));
        }
        setting.default.map(|value| (Origin::Default, Ok(value.to_owned())))
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(format!("is longer than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// The text that a flag would have had in place of this value.
fn text_of(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(flag) => Ok(flag.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "out of range"),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            Err("must be text, a whole number, true or false")
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    let newlines = text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    newlines + 1
}

fn suggestion(name: &str, sections: &[&[Setting]]) -> String {
    let kebab = name.trim_start_matches('-').replace('_', "-").to_lowercase();
    let known = sections.iter().copied().flatten().find(|setting| setting.name == kebab);
    known.map_or_else(String::new, |setting| format!(" (did you mean {:?}?)", setting.name))
}

//! What a setting is, and how a list of settings becomes flags.
//!
//! A setting is declared once, in the file of its section: the flag, the variable, the name in the file, the help
//! and the default all come from that declaration. This file only turns declarations into clap arguments; it
//! reads no variable and no file, and judges no value. Invariant: `KEYSTEAD_` and the flag's name in capitals is
//! the variable, always.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

/// The flag that names the configuration file. Not a setting: a file cannot name another one.
const CONFIG_FLAG: &str = "config";

/// The declaration of one setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Name of the flag without dashes, and of the entry in the file: kebab-case.
    pub name: &'static str,
    /// What stands for the value in the help.
    pub value: &'static str,
    /// The value when no source gives one; `None` where absence means something.
    pub default: Option<&'static str>,
    /// One line for the help.
    pub help: &'static str,
    /// Whether the flag alone means `true`.
    pub switch: bool,
    /// Whether the value must never be shown.
    pub secret: bool,
}

impl Setting {
    /// A setting that always has a value.
    #[must_use]
    pub const fn new(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, value, default: Some(default), help, switch: false, secret: false }
    }

    /// A setting that may be absent.
    #[must_use]
    pub const fn optional(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { name, value, default: None, help, switch: false, secret: false }
    }

    /// A setting that is off, and that the flag alone turns on (`--dev`, `--dev=false`).
    #[must_use]
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { name, value: "true|false", default: Some("false"), help, switch: true, secret: false }
    }

    /// The same setting, its value never shown in a problem.
    #[must_use]
    pub const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// The environment variable of this setting.
    #[must_use]
    pub fn variable(&self) -> String {
        variable_of(self.name)
    }

    fn arg(&self, global: bool) -> Arg {
        let mut help = format!("{} [env: {}]", self.help, self.variable());
        if let Some(default) = self.default {
            help.push_str(" [default: ");
            help.push_str(default);
            help.push(']');
        }
        let arg = Arg::new(self.name)
            .long(self.name)
            .value_name(self.value)
            .help(help)
            .action(ArgAction::Set)
            .value_parser(value_parser!(String))
            .allow_negative_numbers(true)
            .global(global);
        if self.switch { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
    }
}

/// `KEYSTEAD_` and a flag's name in capitals.
pub(super) fn variable_of(name: &str) -> String {
    let mut variable = String::from("KEYSTEAD_");
    variable.extend(name.chars().map(|character| match character {
        '-' => '_',
        other => other.to_ascii_uppercase(),
    }));
    variable
}

/// Which settings are flags of a command.
pub trait SettingGroup {
    /// The sections, in the order in which the help shows them.
    const SECTIONS: &'static [&'static [Setting]];
    /// Whether the flags may also stand after a subcommand.
    const GLOBAL: bool;
}

/// The settings that were given as flags, and the configuration file that was named.
#[derive(Clone)]
pub struct Flags<G> {
    given: BTreeMap<&'static str, String>,
    file: Option<PathBuf>,
    group: PhantomData<G>,
}

impl<G> Default for Flags<G> {
    fn default() -> Self {
        Self { given: BTreeMap::new(), file: None, group: PhantomData }
    }
}

impl<G> std::fmt::Debug for Flags<G> {
    /// The names alone: a value may hold a password.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Flags").field("given", &self.given.keys()).field("file", &self.file).finish()
    }
}

impl<G> Flags<G> {
    /// Values by setting name.
    #[must_use]
    pub fn given(&self) -> &BTreeMap<&'static str, String> {
        &self.given
    }

    /// The file that `--config` names.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

impl<G: SettingGroup> clap::FromArgMatches for Flags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in G::SECTIONS.iter().copied().flatten() {
            if let Some(value) = matches.get_one::<String>(setting.name) {
                self.given.insert(setting.name, value.clone());
            }
        }
        if let Some(file) = matches.get_one::<PathBuf>(CONFIG_FLAG) {
            self.file = Some(file.clone());
        }
        Ok(())
    }
}

impl<G: SettingGroup> clap::Args for Flags<G> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG_FLAG)
            .long(CONFIG_FLAG)
            .value_name("FILE")
            .help(format!("TOML file with settings by flag name [env: {}]", variable_of(CONFIG_FLAG)))
            .value_parser(value_parser!(PathBuf))
            .global(G::GLOBAL);
        G::SECTIONS
            .iter()
            .copied()
            .flatten()
            .fold(command.arg(config), |command, setting| command.arg(setting.arg(G::GLOBAL)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

//! Lists page by page: the flags that every list has, when to go on, and how a page is printed.
//!
//! Knows no single list. Invariant: following pages ends, even with a server that hands out the same token for ever.

use clap::Args;

use super::failure::Failure;
use super::output::{self, Fields, object};
use crate::config::OutputFormat;

/// Page size where all pages are wanted: the service's largest.
pub(super) const PAGE_SIZE_MAX: i32 = 1000;

/// Flags of every list.
#[derive(Debug, Args)]
pub(super) struct Page {
    /// Most entries of one page; 0 for the service's default.
    #[arg(
        long = "page-size",
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    size: i32,
    /// Go on after the page that ended with this token.
    #[arg(
        long = "page-token",
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub(super) token: String,
    /// Follow the pages to the end.
    #[arg(long)]
    all: bool,
}

impl Page {
    /// The page size to ask for.
    pub(super) fn size(&self) -> i32 {
        if self.all && self.size == 0 { PAGE_SIZE_MAX } else { self.size }
    }

    /// Whether to ask for the page of `next`, after that of `last`.
    pub(super) fn goes_on(&self, last: &str, next: &str) -> Result<bool, Failure> {
        Ok(self.all && has_next(last, next)?)
    }
}

/// Whether there is a page after that of `last`.
pub(super) fn has_next(last: &str, next: &str) -> Result<bool, Failure> {
    if !next.is_empty() && last == next {
        return Err(Failure::refused("the service sent the same page token twice".to_owned()));
    }
    Ok(!next.is_empty())
}

/// Prints one page of a list, or all of them put together; a token that is left over is named.
pub(super) fn print(
    format: OutputFormat,
    name: &'static str,
    columns: &[&'static str],
    records: Vec<Fields>,
    next_page_token: &str,
) -> Result<(), Failure> {
    match format {
        OutputFormat::Json => {
            let list = records.into_iter().map(object).collect();
            output::print(&output::json(&object(vec![(name, list), ("next_page_token", next_page_token.into())])))
        }
        OutputFormat::Table => {
            output::print(&output::table(columns, &records))?;
            if !next_page_token.is_empty() {
                output::note(&format!("more: --page-token {}", output::escape(next_page_token)));
            }
            Ok(())
        }
    }
}

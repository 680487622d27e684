//! Bars in a terminal: a line per value, drawn in eighths of a character cell.
//!
//! Each bar has a solid part and, after it, a hatched one. Knows no message and reads no setting but in `Screen::new`.
//! Invariant: what is not zero shows, what is zero does not, and no line is wider than the screen, unless the screen
//! has no room for labels and values.

use std::io::{self, IsTerminal as _};

use super::output::escape;
use crate::config::Environment;

/// Width where there is no terminal to ask.
const COLUMNS_DEFAULT: usize = 80;
/// The narrowest room for bars; a screen with less gets wider lines.
const BAR_COLUMNS_MIN: usize = 4;
/// A cell, by how many eighths of it are filled.
const EIGHTHS: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', SOLID];
pub(super) const SOLID: char = '█';
pub(super) const HATCHED: char = '░';
const RED: &str = "\u{1b}[31m";
const PLAIN: &str = "\u{1b}[0m";

/// What standard output shows on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    pub(super) columns: usize,
    pub(super) coloured: bool,
}

impl Screen {
    /// The terminal behind standard output, or what stands for one in a file or pipe. Colour is for terminals alone,
    /// and not where `NO_COLOR` is set to anything (no-color.org).
    pub(super) fn new(environment: Environment<'_>) -> Self {
        let out = io::stdout();
        if !out.is_terminal() {
            return Self { columns: COLUMNS_DEFAULT, coloured: false };
        }
        let size = rustix::termios::tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col));
        let forbidden = environment("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { columns: size.filter(|columns| *columns > 0).unwrap_or(COLUMNS_DEFAULT), coloured: !forbidden }
    }
}

/// One line of a chart.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) solid: u64,
    pub(super) hatched: u64,
}

impl Bar {
    const fn whole(&self) -> u64 {
        self.solid.saturating_add(self.hatched)
    }
}

/// A chart: label, value and bar of each line, in columns.
pub(super) fn draw(bars: &[Bar], screen: Screen) -> String {
    let lines: Vec<(String, String, &Bar)> =
        bars.iter().map(|bar| (escape(&bar.label), grouped(bar.whole()), bar)).collect();
    let labels = lines.iter().map(|(label, ..)| label.chars().count()).max().unwrap_or(0);
    let values = lines.iter().map(|(_, value, _)| value.len()).max().unwrap_or(0);
    let room = screen.columns.saturating_sub(labels + values + 4).max(BAR_COLUMNS_MIN);
    let largest = bars.iter().map(Bar::whole).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut text, (label, value, bar)| {
        let line = format!("{label:<labels$}  {value:>values$}  {}", bar_of(bar, largest, room, screen.coloured));
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

fn bar_of(bar: &Bar, largest: u64, room: usize, coloured: bool) -> String {
    let room_for_solid = if bar.hatched > 0 { room - 1 } else { room };
    let solid = eighths(bar.solid, largest, room).min(room_for_solid * 8);
    let mut text = SOLID.to_string().repeat(solid / 8);
    text.extend(EIGHTHS.get(solid % 8).filter(|_| !solid.is_multiple_of(8)));
    if bar.hatched > 0 {
        let end = eighths(bar.whole(), largest, room).div_ceil(8);
        let hatched = HATCHED.to_string().repeat(end.saturating_sub(solid.div_ceil(8)).max(1));
        let (red, plain) = if coloured { (RED, PLAIN) } else { ("", "") };
        text.extend([red, &hatched, plain]);
    }
    text
}

/// How many eighths of a cell show `value`, where `largest` fills `room` cells: at least one for what is not zero.
fn eighths(value: u64, largest: u64, room: usize) -> usize {
    if value == 0 {
        return 0;
    }
    let eighths = u128::from(value) * (room as u128 * 8) / u128::from(largest.max(1));
    usize::try_from(eighths).unwrap_or(usize::MAX).max(1)
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, solid: u64, hatched: u64) -> Bar {
        Bar { label: label.to_owned(), solid, hatched }
    }

    const fn plain(columns: usize) -> Screen {
        Screen { columns, coloured: false }
    }

    fn three_days() -> [Bar; 4] {
        [bar("2026-11-01", 1000, 200), bar("2026-11-02", 0, 0), bar("2026-11-03", 1, 0), bar("2026-11-04", 450, 0)]
    }

    #[test]
    fn bars_fill_narrow_usual_and_wide_screens() {
        let narrow = "\
2026-11-01  1,200  █████████████████▌░░░
2026-11-02      0
2026-11-03      1  ▏
2026-11-04    450  ███████▉
";
        assert_eq!(draw(&three_days(), plain(40)), narrow);
        for columns in [80, 200] {
            let text = draw(&three_days(), plain(columns));
            let lines: Vec<&str> = text.lines().collect();
            let room = columns - 19;
            assert_eq!(lines[0].chars().count(), columns, "the largest fills the screen");
            assert_eq!(lines[0].chars().filter(|letter| *letter == HATCHED).count(), room - (room * 5).div_ceil(6));
            assert_eq!(lines[1..3], ["2026-11-02      0", "2026-11-03      1  ▏"]);
        }
    }

    #[test]
    fn zero_usage_is_lines_without_bars_and_nothing_is_no_line() {
        let none = [bar("2026-11", 0, 0), bar("2026-12", 0, 0)];
        assert_eq!(draw(&none, plain(80)), "2026-11  0\n2026-12  0\n");
        assert_eq!(draw(&[], plain(80)), "");
    }

    #[test]
    fn one_bar_fills_its_room_whatever_its_value() {
        for value in [1, 7, u64::MAX] {
            let text = draw(&[bar("x", value, 0)], plain(60));
            assert_eq!(text.trim_end().chars().count(), 60, "{text}");
        }
        assert_eq!(draw(&[bar("x", 0, 5)], plain(12)), "x  5  ░░░░░░\n");
    }

    #[test]
    fn many_bars_are_as_many_lines_and_none_is_wider_than_the_screen() {
        for columns in [40, 80, 200] {
            let bars: Vec<Bar> = (0..720)
                .map(|hour| bar("2026-11-01 00:00", hour * 1234, if hour % 7 == 0 { hour } else { 0 }))
                .collect();
            let text = draw(&bars, plain(columns));
            assert_eq!(text.lines().count(), 720);
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}");
        }
    }

    #[test]
    fn what_is_hatched_always_shows_and_is_all_that_has_colour() {
        assert_eq!(draw(&[bar("x", 1_000_000, 1)], plain(21)), "x  1,000,001  ██████░\n");
        let coloured = Screen { columns: 10, coloured: true };
        assert_eq!(draw(&[bar("x", 1, 1), bar("y", 1, 0)], coloured), "x  2  ██\u{1b}[31m░░\u{1b}[0m\ny  1  ██\n");
    }

    #[test]
    fn a_screen_without_room_still_shows_every_value() {
        assert_eq!(draw(&[bar("2026-11-01", 9, 0), bar("2026-11-02", 3, 0)], plain(1)).lines().count(), 2);
    }

    #[test]
    fn labels_reach_the_terminal_escaped() {
        assert!(!draw(&[bar("\u{1b}[2J", 1, 0)], plain(40)).contains('\u{1b}'));
    }
}

//! Standard output for results, standard error for everything else.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use m2pt_surgery::Lost;
use unicode_width::UnicodeWidthStr;

use super::Colour;
use super::text::printable;

/// A line under the header, and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Where and how to print.
pub(super) struct Printer {
    out: BufWriter<Stdout>,
    colour: bool,
    quiet: bool,
}

impl Printer {
    pub(super) fn new(colour: Colour, quiet: bool) -> Printer {
        let colour = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        Printer { out: BufWriter::new(io::stdout()), colour, quiet }
    }

    /// A line of the result.
    pub(super) fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        writeln!(self.out, "{}", text.as_ref())
    }

    /// A table of the result, followed by an empty line.
    pub(super) fn table(&mut self, table: &Table) -> io::Result<()> {
        for line in table.lines() {
            writeln!(self.out, "{}", line.trim_end())?;
        }
        writeln!(self.out)
    }

    /// A table as [`Printer::table`] prints it, of which the cells are made twice, to be measured and to be printed, so
    /// that it takes no memory however long it is.
    pub(super) fn rows<T>(&mut self, header: &[&str], rows: &[T], cells: impl Fn(&T) -> Vec<Text>) -> io::Result<()> {
        let mut widths: Vec<usize> = header.iter().map(|title| title.width()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(cells(row)) {
                *width = (*width).max(cell.text.width());
            }
        }
        let header = header.iter().map(|title| Text::left((*title).to_owned())).collect();
        self.row(&widths, header)?;
        let line: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        writeln!(self.out, "{}", line.join("─"))?;
        for row in rows {
            self.row(&widths, cells(row))?;
        }
        writeln!(self.out)
    }

    fn row(&mut self, widths: &[usize], cells: Vec<Text>) -> io::Result<()> {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(cells) {
            let room = " ".repeat(width.saturating_sub(cell.text.width()));
            let parts = if cell.right { [&*room, &*cell.text] } else { [&*cell.text, &*room] };
            line.extend([" ", parts[0], parts[1], "  "]);
        }
        writeln!(self.out, "{}", line.trim_end())
    }

    /// The result as one JSON object.
    pub(super) fn json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value).map_err(io::Error::from)?;
        writeln!(self.out)
    }

    /// What the user should know besides the result: one line, whatever names from a file are in it.
    pub(super) fn note(&mut self, text: &str) {
        self.note_lines(&printable(text));
    }

    /// Says which tensors a cast to a narrower type could not hold.
    pub(super) fn note_lost(&mut self, lost: &[(String, Lost)]) {
        for (name, Lost { overflow, underflow }) in lost {
            for (count, became) in [(*underflow, "0"), (*overflow, "infinite")] {
                if count > 0 {
                    let numbers = if count == 1 { "number" } else { "numbers" };
                    let count = super::text::count(count);
                    self.note(&format!("{name}: {count} {numbers} became {became} in the narrower type"));
                }
            }
        }
    }

    /// A note of several lines, of which the program itself made the line breaks.
    pub(super) fn note_lines(&mut self, text: &str) {
        if !self.quiet {
            // Nobody can be told that standard error is gone.
            let _ = writeln!(io::stderr(), "note: {}", safe(text));
        }
    }

    /// Why the command failed: one line, whatever names from a file are in it.
    pub(super) fn error(&mut self, text: &str) {
        self.error_lines(&printable(text));
    }

    /// An error of several lines, of which the program itself made the line breaks.
    pub(super) fn error_lines(&mut self, text: &str) {
        let _ = self.out.flush();
        let _ = writeln!(io::stderr(), "error: {}", safe(text));
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    pub(super) fn quiet(&self) -> bool {
        self.quiet
    }

    /// An empty table with that header, as wide as its content; coloured cells show if colours are on.
    pub(super) fn new_table(&self, header: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(STYLE).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.to_vec());
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table
    }
}

/// A cell of a table printed by [`Printer::rows`].
pub(super) struct Text {
    text: String,
    right: bool,
}

impl Text {
    pub(super) fn left(text: String) -> Text {
        Text { text, right: false }
    }

    /// Numbers.
    pub(super) fn right(text: String) -> Text {
        Text { text, right: true }
    }
}

/// The lines of a message, control characters made visible.
fn safe(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// A cell of numbers.
pub(super) fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

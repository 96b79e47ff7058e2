//! Lambdas as a table of blocks and kinds of layer.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{Cell, CellAlignment, Color, Table};
use m2pt_surgery::{LayerId, LayerKind};

use super::printer::Printer;

/// Characters of the longest bar.
const BAR: usize = 8;

/// A table with a row for each block and a column for each kind; each lambda with a bar of its size, the largest being
/// full, coloured by its sign.
pub(super) fn table(lambdas: &BTreeMap<LayerId, f64>, printer: &Printer) -> Table {
    let mut header = vec!["block"];
    header.extend(LayerKind::ALL.iter().map(|kind| kind.name()));
    let mut table = printer.new_table(&header);
    let largest = lambdas.values().fold(0.0, |largest: f64, l| largest.max(l.abs()));
    for block in lambdas.keys().map(|id| id.block).collect::<BTreeSet<_>>() {
        let mut row = vec![Cell::new(block).set_alignment(CellAlignment::Right)];
        for kind in LayerKind::ALL {
            row.push(match lambdas.get(&LayerId { block, kind }) {
                None => Cell::new(""),
                Some(&lambda) => {
                    let colour = if lambda < 0.0 { Color::Blue } else { Color::Yellow };
                    let number = match lambda.abs() {
                        tiny if tiny > 0.0 && tiny < 1e-4 => format!("{lambda:+.0e}"),
                        _ => format!("{lambda:+.4}"),
                    };
                    Cell::new(format!("{number:<7} {}", bar(lambda.abs() / largest))).fg(colour)
                }
            });
        }
        table.add_row(row);
    }
    table
}

/// A bar of that part of its full length, in eighths of a character.
fn bar(part: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = if part.is_finite() { (part.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize } else { 0 };
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn bars_are_as_long_as_their_part() {
        assert_eq!(bar(1.0), "████████");
        assert_eq!(bar(0.5), "████");
        assert_eq!(bar(1.0 / 64.0), "▏");
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(f64::NAN), "");
    }
}

//! Tables of cells, as commands print and write them: in markdown, which reads well as it is.

use circuit_framework::text;

/// Cells as a markdown table: the first line its head, the first `words` columns text, the others numbers.
pub(super) fn markdown(cells: &[Vec<String>], words: usize) -> String {
    let cells: Vec<Vec<String>> =
        cells.iter().map(|line| line.iter().map(|cell| text::markdown(cell)).collect()).collect();
    let widths: Vec<usize> = (0..cells[0].len())
        .map(|column| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut table = String::new();
    for (index, line) in cells.iter().enumerate() {
        let padded: Vec<String> = (line.iter().zip(&widths).enumerate())
            .map(|(column, (cell, &width))| match column < words {
                true => format!("{cell:width$}"),
                false => format!("{cell:>width$}"),
            })
            .collect();
        table.push_str(&format!("| {} |\n", padded.join(" | ")));
        if index == 0 {
            let rules: Vec<String> = (widths.iter().enumerate())
                .map(|(column, &width)| match column < words {
                    true => "-".repeat(width),
                    false => format!("{}:", "-".repeat(width - 1)),
                })
                .collect();
            table.push_str(&format!("| {} |\n", rules.join(" | ")));
        }
    }
    table
}

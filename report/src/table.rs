//! Tables in HTML, and numbers as they stand in them.

use circuit_framework::text::escape;

/// A table: a head, and lines whose first cell names them. The cells are text.
pub fn table(caption: &str, head: &[String], lines: &[Vec<String>]) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        let cell = |(index, cell): (usize, &String)| {
            let (tag, scope) = match (index, tag) {
                (_, "th") => ("th", " scope=\"col\""),
                (0, _) => ("th", " scope=\"row\""),
                _ => ("td", ""),
            };
            format!("<{tag}{scope}>{}</{tag}>", escape(cell))
        };
        cells.iter().enumerate().map(cell).collect()
    };
    let lines: String =
        lines.iter().map(|line| format!("<tr>{}</tr>\n", cells("td", line))).collect();
    format!(
        "<div class=\"scroll\"><table><caption>{}</caption>\n<thead><tr>{}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>\n",
        escape(caption),
        cells("th", head)
    )
}

/// A number with four significant digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => value.to_string(),
        0.0 => "0".to_owned(),
        1e-3..1e6 => {
            let digits = (3.0 - size.log10().floor()).clamp(0.0, 6.0) as usize;
            format!("{value:.digits$}")
        }
        _ => format!("{value:.3e}"),
    }
}

/// A number, and its uncertainty where it has one, of which two digits count.
pub fn estimate(mean: f64, margin: Option<f64>) -> String {
    let Some(margin) = margin else { return number(mean) };
    let digits = 1.0 - margin.log10().floor();
    match (-3.0..=6.0).contains(&digits) && mean.is_finite() {
        true => {
            let digits = digits.max(0.0) as usize;
            format!("{mean:.digits$} ± {margin:.digits$}")
        }
        false => format!("{} ± {}", number(mean), number(margin)),
    }
}

/// A share in percent.
pub fn percent(share: f64) -> String {
    format!("{} %", number(100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_significant_digits() {
        for (value, text) in [
            (0.0, "0"),
            (5.64831, "5.648"),
            (-0.012345, "-0.01235"),
            (1234567.0, "1.235e6"),
            (4.2e-7, "4.200e-7"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn an_uncertainty_has_two_digits() {
        assert_eq!(estimate(5.64831, Some(0.02571)), "5.648 ± 0.026");
        assert_eq!(estimate(14.6867, Some(1.234)), "14.7 ± 1.2");
        assert_eq!(estimate(1.0, Some(0.0)), "1.000 ± 0");
        assert_eq!(estimate(1.5, None), "1.500");
    }

    #[test]
    fn cells_are_text() {
        let table = table("<b>", &["<i>".to_owned()], &[vec!["\"x\" & <script>".to_owned()]]);
        assert!(!table.contains("<b>") && !table.contains("<i>") && !table.contains("<script>"));
        assert!(table.contains("&quot;x&quot; &amp; &lt;script&gt;"), "{table}");
    }
}

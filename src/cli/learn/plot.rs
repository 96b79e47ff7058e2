//! What was learned, as a drawing: losses by epoch, and a map of the lambdas for each auxiliary.

use anyhow::{Result, anyhow};
use m2pt_surgery::LayerKind;
use m2pt_surgery::learn::{Epoch, Fitted, Learner};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Text, axes and lines that can be read on white and on black: a contrast of 4.5 and more with both.
const GREY: RGBColor = RGBColor(118, 118, 118);
const FIT: RGBColor = RGBColor(200, 95, 0);
const STOP: RGBColor = RGBColor(30, 120, 215);

const WIDTH: u32 = 760;
const CURVES: u32 = 300;
/// Height of a row of the map, and of what is above its rows.
const ROW: u32 = 22;
const HEAD: u32 = 54;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// An SVG; `held_out` are the losses at lambda = 0 and as learned.
pub(super) fn draw(
    learner: &Learner<'_, '_>,
    fitted: &Fitted,
    history: &[Epoch],
    held_out: (f64, f64),
) -> Result<String> {
    let maps: Vec<Vec<_>> =
        (0..learner.auxiliaries()).map(|aux| learner.entries(aux, &fitted.values).collect()).collect();
    let rows =
        |map: &[(&str, m2pt_surgery::LayerId, f32)]| map.iter().map(|entry| entry.1.block + 1).max().unwrap_or(0);
    let heights: Vec<u32> = maps.iter().map(|map| HEAD + rows(map) as u32 * ROW).collect();
    let mut text = String::new();
    {
        let root =
            SVGBackend::with_string(&mut text, (WIDTH, CURVES + heights.iter().sum::<u32>() + 10)).into_drawing_area();
        let wrong = |error: &dyn std::fmt::Display| anyhow!("cannot draw: {error}");
        let (top, mut rest) = root.split_vertically(CURVES);
        curves(&top, history, fitted.best, held_out).map_err(|error| wrong(&error))?;
        for (number, (map, height)) in maps.iter().zip(heights).enumerate() {
            let (area, below) = rest.split_vertically(height);
            let title = if maps.len() > 1 { format!("lambda, auxiliary {}", number + 1) } else { "lambda".to_owned() };
            cells(&area, map, &title).map_err(|error| wrong(&error))?;
            rest = below;
        }
        root.present().map_err(|error| wrong(&error))?;
    }
    Ok(text)
}

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn curves(area: &Area<'_>, history: &[Epoch], best: usize, held_out: (f64, f64)) -> Drawn {
    let losses = history.iter().flat_map(|epoch| epoch.fit_loss.into_iter().chain([epoch.stop_loss]));
    let losses: Vec<f64> = losses.filter(|loss| loss.is_finite()).collect();
    let low = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let high = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let margin = ((high - low) * 0.08).max(1e-6);
    let last = history.last().map_or(1, |epoch| epoch.epoch.max(1));
    let title = format!("loss by epoch; held out {:.4} at lambda = 0, {:.4} as learned", held_out.0, held_out.1);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(title, ("sans-serif", 15).into_font().color(&GREY))
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..last as f64, (low - margin)..(high + margin))?;
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(GREY)
        .label_style(("sans-serif", 12).into_font().color(&GREY))
        .x_labels(last.min(10) + 1)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.4}"))
        .draw()?;
    let fit = history.iter().filter_map(|epoch| Some((epoch.epoch as f64, epoch.fit_loss?)));
    let fit: Vec<(f64, f64)> = fit.filter(|point| point.1.is_finite()).collect();
    let stop: Vec<(f64, f64)> = history.iter().map(|epoch| (epoch.epoch as f64, epoch.stop_loss)).collect();
    for (name, points, colour) in [("fitted, on the way", fit, FIT), ("choosing the epoch", stop.clone(), STOP)] {
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.draw_series(stop.get(best).map(|&point| Circle::new(point, 4, STOP.filled())))?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 12).into_font().color(&GREY))
        .draw()
}

/// Blocks down, kinds of layer across, each lambda with a bar of its size: orange above 0, blue below.
fn cells(area: &Area<'_>, map: &[(&str, m2pt_surgery::LayerId, f32)], title: &str) -> Drawn {
    let text = |size: i32| ("sans-serif", size).into_font().color(&GREY);
    let largest = map.iter().map(|entry| entry.2.abs()).fold(0.0, f32::max);
    area.draw(&Text::new(title.to_owned(), (10, 6), text(15)))?;
    let (left, width) = (60, (WIDTH as i32 - 80) / LayerKind::ALL.len() as i32);
    for (column, kind) in LayerKind::ALL.iter().enumerate() {
        area.draw(&Text::new(kind.name(), (left + column as i32 * width + 6, 32), text(13)))?;
    }
    for (_, id, lambda) in map {
        let column = LayerKind::ALL.iter().position(|kind| *kind == id.kind).unwrap_or_default() as i32;
        let (x, y) = (left + column * width, HEAD as i32 - 4 + (id.block as u32 * ROW) as i32);
        let colour = if *lambda < 0.0 { STOP } else { FIT };
        let part = if largest > 0.0 { f64::from(lambda.abs() / largest) } else { 0.0 };
        let longest = f64::from(width - 76);
        let corners = [(x + 62, y + 4), (x + 62 + (longest * part).round() as i32, y + ROW as i32 - 6)];
        area.draw(&Rectangle::new(corners, colour.filled()))?;
        area.draw(&Text::new(format!("{lambda:+.4}"), (x + 6, y + 4), text(12)))?;
        if column == 0 {
            area.draw(&Text::new(id.block.to_string(), (20, y + 4), text(12)))?;
        }
    }
    Ok(())
}

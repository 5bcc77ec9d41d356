"""Colours of classes in figures, SVG pictures and pages."""

# Paul Tol's "muted" colours, distinct with any colour vision; classes repeat after ten.
CLASS_COLORS = (
    "#88CCEE", "#CC6677", "#DDCC77", "#117733", "#332288", "#AA4499", "#44AA99", "#999933",
    "#882255", "#555555",
)  # fmt: skip

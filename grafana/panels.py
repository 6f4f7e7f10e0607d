"""What the dashboards are made of: panels and variables in the form that all of them share."""

from grafana_foundation_sdk.builders import bargauge, common, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    FieldColor,
    QueryVariable,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN = 'implementation=~"$implementation"'
BY = "implementation_model_set"
NAMED = "{{implementation}} · {{model_set}}"
NO_GPU = "no GPU, by DCGM"
NO_CLUSTER = "no cluster"
PROFILING = " Profiling counter: data-centre cards only, GeForce has none."

Query = tuple[str, str]
Color = str
SIDES = ("detbench", "detserver")
SERVER_STAGES = ("receive", "wait", "decode", "preprocess", "queue", "forward", "postprocess", "serialise")
STAGES = ("network and client", *SERVER_STAGES)
STAGE_COLORS = ("#9e9e9e", "#8ab8ff", "#ffee52", "#5794f2", "#73bf69", "#f2cc0c", "#f2495c", "#b877d9", "#ff9830")


def query(expr: str, legend: str, instant: bool = False) -> Dataquery:
    """One PromQL query; `instant` asks for its value now only."""
    made = Dataquery().datasource(SOURCE).expr(expr).legend_format(legend)
    return made.instant() if instant else made.range()


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = 8,
    height: int = 11,
    stacked: bool = False,
    absent: str = "nothing yet",
) -> timeseries.Panel:
    """A time series panel; the legend's table shows mean and last. Without a series it says `absent`."""
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.TABLE)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["mean", "lastNotNull"])
    )
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(height)
        .line_width(2)
        .fill_opacity(50 if stacked else 8)
        .no_value(absent)
        .show_points(VisibilityMode.NEVER)
        .span_nulls(10_000.0)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        for name, color in zip(STAGES, STAGE_COLORS, strict=True):
            panel = panel.override_by_name(name, [fixed(color)])
    for expr, label in queries:
        panel = panel.with_target(query(expr, label))
    return panel


def number(
    title: str, description: str, unit: str, expr: str, legend: str = "", span: int = 4, names: bool = False
) -> stat.Panel:
    """A large number; with `names`, the series' names instead of their values."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(4)
        .no_value("–")
        .graph_mode(BigValueGraphMode.NONE if names else BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .color_scheme(FieldColor().mode(FieldColorModeId.FIXED).fixed_color("text" if names else "blue"))
        .text_mode(BigValueTextMode.NAME if names else BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(query(expr, legend, instant=names))
    )


def weights() -> stat.Panel:
    """The source of each model's weights, as words: the series' value stands for it."""
    sources = {
        "random": ("random weights: speeds only, detections mean nothing", "orange"),
        "pretrained": ("pretrained", "transparent"),
        "local": ("local file", "transparent"),
    }
    expr = " or ".join(
        f'{value} * max by (model_set, model) (detserver_weights_info{{source="{source}"}})'
        for value, source in enumerate(sources)
    )
    words = {
        str(value): ValueMappingResult(text=text, color=color, index=value)
        for value, (text, color) in enumerate(sources.values())
    }
    return (
        stat.Panel()
        .title("Weights")
        .description(
            "Where the weights of each model come from that was loaded. Random ones find nothing that is there."
        )
        .datasource(SOURCE)
        .unit("short")
        .span(24)
        .height(4)
        .no_value("no model is loaded yet")
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.BACKGROUND)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        # Sizes that a sentence needs: Grafana's own choice fits it into a number's place.
        .text(common.VizTextDisplayOptions().title_size(14).value_size(16))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .mappings([ValueMap(options=words)])
        .with_target(query(expr, "{{model_set}} · {{model}}", instant=True))
    )


def bars(title: str, description: str, unit: str, *queries: Query, span: int = 6, height: int = 9) -> bargauge.Panel:
    """Horizontal bars of the values now, one for each series, drawn against the longest."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(height)
        .no_value("–")
        .display_name("${__series.name}")  # without it a single series has no name
        .display_mode(BarGaugeDisplayMode.BASIC)
        .orientation(VizOrientation.HORIZONTAL)
        .text(common.VizTextDisplayOptions().title_size(14).value_size(16))
        .color_scheme(FieldColor().mode(FieldColorModeId.FIXED).fixed_color("blue"))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if unit == "sci":
        panel = panel.decimals(1)
    for expr, legend in queries:
        panel = panel.with_target(query(expr, legend, instant=True))
    return panel


def decimals(unit: str) -> list[DynamicConfigValue]:
    """A column's property: without it, scientific numbers come with all of their digits."""
    return [DynamicConfigValue(id_val="decimals", value=1)] if unit == "sci" else []


def fixed(color: Color) -> DynamicConfigValue:
    """A series' property: its color."""
    return DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})


def dashboard(uid: str, title: str, description: str, refresh: str = "5s") -> Dashboard:
    """An empty dashboard with the variables, links and annotations that all of them share."""
    runs = (
        AnnotationQuery()
        .name("Runs")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("rgba(120, 160, 255, 0.6)")
        .expr(f"sum by (implementation, model_set) ({BY}:detserver_requests:rate10s) > 0")
    )
    loads = (
        AnnotationQuery()
        .name("Loads of detbench run")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("rgba(120, 220, 160, 0.6)")
        .expr("sum by (run, load, implementation) (detbench_run_info)")
    )
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["detbench"])
        .readonly()
        .refresh(refresh)
        .time("now-15m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            DatasourceVariable("datasource")
            .id("datasource")
            .label("Data source")
            .type("prometheus")
            .current(VariableOption(selected=True, text="Prometheus", value="prometheus"))
        )
        .annotation(runs)
        .annotation(loads)
        .link(
            DashboardLink("detbench")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["detbench"])
            .as_dropdown(False)
            .keep_time(True)
        )
    )


def implementation_variable() -> QueryVariable:
    """Which implementations are shown: those that the server or a pushed result names."""
    return (
        QueryVariable("implementation")
        .id("implementation")
        .label("Implementation")
        .datasource(SOURCE)
        .query({"query": "label_values(detserver_requests_total, implementation)", "refId": "implementation"})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )

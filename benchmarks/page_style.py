"""Page style: how the HTML report looks, on dark and light screens, wide and narrow ones."""

from jscc.benchmarks.plots import COLOURS

# The plots' colours on a dark ground: as far apart, and lighter.
_ON_DARK = ("#4FB3F0", "#FF8A4C", "#34C79A", "#E39BC4", "#F2B233", "#8CCBF2", "#C98A5B", "#A58BFF")


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{index}: {colour};" for index, colour in enumerate(colours))


STYLESHEET = f"""
:root {{
  color-scheme: light dark;
  --ground: #ffffff; --card: #f7f8fa; --ink: #1b1f24; --soft: #57606a; --rule: #d5d9de;
  --grid: #dddddd; --link: #0057a3; {_variables(COLOURS)}
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ground: #14171b; --card: #1c2026; --ink: #e6e9ed; --soft: #a0a8b2; --rule: #363c45;
    --grid: #3a4049; --link: #7cc0ff; {_variables(_ON_DARK)}
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}}
header, main, footer {{ max-width: 76rem; margin: 0 auto; padding: 0 1rem; }}
header {{ padding-top: 1.5rem; }}
footer {{ padding-bottom: 3rem; color: var(--soft); font-size: 0.875rem; }}
h1 {{ margin: 0 0 0.25rem; font-size: 1.75rem; line-height: 1.2; }}
h2 {{
  margin: 2.5rem 0 0.5rem; padding-top: 1rem; border-top: 1px solid var(--rule);
  font-size: 1.375rem;
}}
h3 {{ margin: 0 0 0.5rem; font-size: 1.125rem; }}
p {{ margin: 0.25rem 0 1rem; max-width: 46rem; }}
.soft {{ color: var(--soft); }}
a {{ color: var(--link); }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 1rem 0 0; padding: 0; }}
nav li {{ list-style: none; }}
article {{
  margin: 1rem 0 1.5rem; padding: 1rem; background: var(--card);
  border: 1px solid var(--rule); border-radius: 0.5rem; min-width: 0;
}}
.plots {{
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; margin: 1rem 0; align-items: start;
}}
figure {{ margin: 0; min-width: 0; }}
figcaption {{ color: var(--soft); font-size: 0.875rem; }}
.plot {{ display: block; width: 100%; max-width: 32rem; height: auto; }}
.scroll {{
  overflow: auto; max-width: 100%; max-height: 30rem; margin: 1rem 0;
  border: 1px solid var(--rule); border-radius: 0.25rem; background: var(--ground);
}}
.scroll:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
table {{
  border-collapse: collapse; min-width: 100%; font-size: 0.875rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal;
}}
th, td {{ padding: 0.3rem 0.75rem; text-align: right; border-bottom: 1px solid var(--rule); }}
th {{ font-weight: 600; }}
tbody th {{ font-weight: 400; white-space: nowrap; }}
th:first-child {{ text-align: left; }}
tbody tr:last-child > * {{ border-bottom: 0; }}
thead th {{ position: sticky; top: 0; vertical-align: bottom; background: var(--ground); }}
dl {{
  display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 0;
  font-size: 0.875rem;
}}
dt {{ color: var(--soft); }}
dd {{ margin: 0; min-width: 0; }}
code {{ font-size: 0.9em; }}
@media (max-width: 60rem) {{ table {{ width: max-content; }} }}
@media (max-width: 30rem) {{
  article {{ padding: 0.75rem; }}
  dl {{ grid-template-columns: 1fr; gap: 0; }}
  dd {{ margin-bottom: 0.4rem; }}
}}
@media print {{ .scroll {{ max-height: none; }} }}
"""

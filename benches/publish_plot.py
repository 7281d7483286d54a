"""The plot of publishes a second against workers, as SVG."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 64, 24, 56, 56


def plot(rates, subtitle):
    """`rates`: publishes a second by number of workers."""
    workers = sorted(rates)
    linear = {n: n * rates[workers[0]] / workers[0] for n in workers}
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500) if max(linear.values()) / s <= 8)
    top = step * (int(max(max(linear.values()), max(rates.values())) / step) + 1)
    x = lambda n: LEFT + (WIDTH - LEFT - RIGHT) * n / workers[-1]
    y = lambda rate: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / top
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold">Publishes a second, by number of workers</text>',
        f'<text x="{LEFT}" y="42" fill="#555">{subtitle}</text>',
    ]
    for rate in range(0, top + 1, step):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate}</text>')
    for n in workers:
        parts.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{n}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">workers, one publish at a time each</text>')

    def curve(points, style):
        coordinates = " ".join(f"{x(n):.1f},{y(points[n]):.1f}" for n in workers)
        parts.append(f'<polyline points="{coordinates}" fill="none" {style}/>')

    curve(linear, 'stroke="#999" stroke-width="1.5" stroke-dasharray="6 5"')
    curve(rates, 'stroke="#0b63b5" stroke-width="2.5"')
    for n in workers:
        parts.append(f'<circle cx="{x(n):.1f}" cy="{y(rates[n]):.1f}" r="4.5" fill="#0b63b5"/>')
        share = f" ({rates[n] / linear[n]:.2f} of linear)" if n != workers[0] else ""
        anchor, shift = ("end", -12) if n == workers[-1] else ("start", 8)
        parts.append(f'<text x="{x(n) + shift:.1f}" y="{y(rates[n]) + (64 if n == workers[-1] else 30):.1f}" text-anchor="{anchor}" fill="#0b63b5">{rates[n]:.1f}{share}</text>')
    for row, (text, style) in enumerate((("measured", 'stroke="#0b63b5" stroke-width="2.5"'),
                                         ("linear", 'stroke="#999" stroke-width="1.5" stroke-dasharray="6 5"'))):
        height = TOP + 22 + 20 * row
        parts.append(f'<line x1="{LEFT + 16}" x2="{LEFT + 52}" y1="{height}" y2="{height}" {style}/>')
        parts.append(f'<text x="{LEFT + 60}" y="{height + 4}">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])

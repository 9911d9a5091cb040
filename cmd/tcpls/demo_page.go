package main

import (
	"bytes"
	"html/template"
	"os"
	"path/filepath"
	"strings"
)

// save writes the page, or the plot alone if the name ends in .svg.
func (r *outcome) save(name string) error {
	plot := r.plot()
	if strings.EqualFold(filepath.Ext(name), ".svg") {
		return os.WriteFile(name, []byte(plot), 0o644)
	}
	var page bytes.Buffer
	err := demoPage.Execute(&page, map[string]any{
		"Outcome": r, "Plot": template.HTML(plot), "Rows": r.rows(), "Size": size(r.Size), "Version": version(),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(name, page.Bytes(), 0o644)
}

// demoPage needs nothing but itself.
var demoPage = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>tcpls demo</title>
<style>
body { font-family: system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1a202c; background: #ffffff; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { text-align: left; padding: 0.2em 1.5em 0.2em 0; vertical-align: top; }
.pass { color: #276749; } .fail { color: #c53030; }
.time { text-align: right; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>tcpls demo</h1>
{{with .Outcome}}
<p><strong class="{{if .Pass}}pass{{else}}fail{{end}}">{{if .Pass}}PASS{{else}}FAIL{{end}}</strong> {{.Verdict}}</p>
<p>{{.What}}, {{$.Size}}, mode {{.Mode}}, cut {{.Cut}}. Each transfer had an emulated link 1 of its own.</p>
{{$.Plot}}
<table>
{{range $i, $row := $.Rows}}<tr>{{range $j, $cell := $row}}{{if or (eq $i 0) (eq $j 0)}}<th>{{$cell}}</th>{{else}}<td>{{$cell}}</td>{{end}}{{end}}</tr>
{{end}}</table>
<h2>What happened</h2>
<table>
{{range .Events}}<tr><td class="time">{{printf "%.2f" .At}} s</td><td>{{.Text}}</td></tr>
{{else}}<tr><td>nothing</td></tr>
{{end}}</table>
{{end}}
<p>Made by {{.Version}}.</p>
</body>
</html>
`))

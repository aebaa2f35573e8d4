// Renders an Ollama template as Ollama does, after its documentation: messages of one role in a row are merged, system
// messages are also .System, and nothing else is given. Reads an array of {template, messages} from stdin; writes an
// array of {text, names}, where names are the fields that the template reads.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

type message struct {
	Role    string
	Content string
}

type chat struct {
	Template string
	Messages []message
}

type rendered struct {
	Text  string   `json:"text"`
	Names []string `json:"names"`
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func collate(messages []message) (string, []*message) {
	var system []string
	var merged []*message
	for _, one := range messages {
		if one.Role == "system" {
			system = append(system, one.Content)
		}
		if last := len(merged) - 1; last >= 0 && merged[last].Role == one.Role {
			merged[last].Content += "\n\n" + one.Content
		} else {
			merged = append(merged, &message{one.Role, one.Content})
		}
	}
	return strings.Join(system, "\n\n"), merged
}

func names(node parse.Node, found *[]string) {
	switch node := node.(type) {
	case *parse.ListNode:
		if node != nil {
			for _, one := range node.Nodes {
				names(one, found)
			}
		}
	case *parse.ActionNode:
		names(node.Pipe, found)
	case *parse.IfNode:
		branch(&node.BranchNode, found)
	case *parse.RangeNode:
		branch(&node.BranchNode, found)
	case *parse.PipeNode:
		for _, command := range node.Cmds {
			for _, one := range command.Args {
				names(one, found)
			}
		}
	case *parse.FieldNode:
		*found = append(*found, node.Ident...)
	case *parse.VariableNode:
		*found = append(*found, node.Ident[1:]...)
	}
}

func branch(node *parse.BranchNode, found *[]string) {
	names(node.Pipe, found)
	names(node.List, found)
	names(node.ElseList, found)
}

func render(given chat) rendered {
	parsed, err := template.New("").Option("missingkey=zero").Parse(given.Template)
	check(err)
	var found []string
	names(parsed.Root, &found)
	slices.Sort(found)
	system, messages := collate(given.Messages)
	var text bytes.Buffer
	check(parsed.Execute(&text, map[string]any{"System": system, "Messages": messages}))
	return rendered{text.String(), slices.Compact(found)}
}

func main() {
	var chats []chat
	check(json.NewDecoder(os.Stdin).Decode(&chats))
	texts := make([]rendered, 0, len(chats))
	for _, one := range chats {
		texts = append(texts, render(one))
	}
	check(json.NewEncoder(os.Stdout).Encode(texts))
}

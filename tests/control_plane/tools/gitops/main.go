// What Flux and Argo CD make of an object, read from standard input as JSON.
//
//	gitops kstatus          the verdict of kstatus, which Flux and `kubectl wait` by cli-utils ask
//	gitops argocd SCRIPT    the verdict of an Argo CD health script, in the Lua that Argo CD itself runs
package main

import (
	"encoding/json"
	"fmt"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	answer, err := judge(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func judge(arguments []string) (*verdict, error) {
	var object map[string]any
	if err := json.NewDecoder(os.Stdin).Decode(&object); err != nil {
		return nil, err
	}
	switch {
	case len(arguments) == 1 && arguments[0] == "kstatus":
		result, err := status.Compute(&unstructured.Unstructured{Object: integers(object).(map[string]any)})
		if err != nil {
			return nil, err
		}
		return &verdict{string(result.Status), result.Message}, nil
	case len(arguments) == 2 && arguments[0] == "argocd":
		return argocd(arguments[1], object)
	}
	return nil, fmt.Errorf("usage: gitops kstatus | gitops argocd SCRIPT")
}

// As Argo CD does: the object is the global obj, the script returns a table of status and message.
func argocd(script string, object map[string]any) (*verdict, error) {
	state := lua.NewState()
	defer state.Close()
	state.SetGlobal("obj", value(state, object))
	if err := state.DoFile(script); err != nil {
		return nil, err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return nil, fmt.Errorf("%s returns no table", script)
	}
	return &verdict{table.RawGetString("status").String(), table.RawGetString("message").String()}, nil
}

func value(state *lua.LState, from any) lua.LValue {
	switch one := from.(type) {
	case string:
		return lua.LString(one)
	case float64:
		return lua.LNumber(one)
	case bool:
		return lua.LBool(one)
	case []any:
		table := state.NewTable()
		for _, item := range one {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for name, item := range one {
			table.RawSetString(name, value(state, item))
		}
		return table
	}
	return lua.LNil
}

// Whole numbers as int64, as the API machinery reads them.
func integers(from any) any {
	switch one := from.(type) {
	case float64:
		if whole := int64(one); float64(whole) == one {
			return whole
		}
	case []any:
		for i, item := range one {
			one[i] = integers(item)
		}
	case map[string]any:
		for name, item := range one {
			one[name] = integers(item)
		}
	}
	return from
}

// Go's own client with the system's trust: `go run call.go NONCE`, see programs.py.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	call, _ := http.NewRequest("GET", os.Getenv("API")+"/echo?nonce="+os.Args[1], nil)
	call.Header.Set("x-api-key", os.Getenv("INTEROP_KEY"))
	reply, err := http.DefaultClient.Do(call)
	if err != nil {
		panic(err)
	}
	body, err := io.ReadAll(reply.Body)
	fmt.Println(reply.Proto, string(body), err)
}

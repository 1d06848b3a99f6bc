// Go's default client: it has no time-out, follows ten redirects and repeats no POST.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

func main() {
	address := os.Getenv("BASE_URL") + "/images/generations"
	request, err := http.NewRequest("POST", address, strings.NewReader(os.Getenv("BODY")))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("KEY"))
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		log.Fatal(err)
	}
}

// Renders the OpenAPI description with Swagger UI, which defines `window.SwaggerUIBundle`.

window.SwaggerUIBundle({
  url: String(new URL("../openapi.json", import.meta.url)),
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // no requests to another host
});
